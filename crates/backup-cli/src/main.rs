//! The command `pgark`: arguments, rendering, exit codes. What it does is done by the library.

mod args;
mod commands;
mod progress;
mod render;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use pgark::{CancellationToken, Error, ErrorKind};

use args::Cli;

fn main() -> ExitCode {
    if commands::wal::failure_code(std::env::args_os().skip(1)).is_some() {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            default(panic);
            // Rust's own exit code would tell PostgreSQL something that is not true.
            std::process::exit(code_of(ErrorKind::Internal).into());
        }));
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output and are no failure.
            let failed = error.use_stderr();
            let _ = error.print();
            return if failed { exit_code(ErrorKind::Usage) } else { ExitCode::SUCCESS };
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("PGARK_LOG").unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(&Error::io("starting", e), cli.json),
    };
    let json = cli.json;
    let cancel = CancellationToken::new();
    let result = runtime.block_on(async {
        tokio::spawn(cancel_on_signal(cancel.clone()));
        commands::run(cli, &cancel).await
    });
    // A thread that still waits for a store must not keep the command.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => fail(&error, json),
    }
}

/// The first signal cancels and lets the run clean up; the second ends at once.
async fn cancel_on_signal(cancel: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    for _ in 0..2 {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if cancel.is_cancelled() {
            std::process::exit(code_of(ErrorKind::Cancelled).into());
        }
        cancel.cancel();
    }
}

/// Prints an error, its causes and what to do.
fn fail(error: &Error, json: bool) -> ExitCode {
    let mut stderr = std::io::stderr().lock();
    // Nobody can be told when standard error is closed.
    let _ = if json {
        writeln!(stderr, "{}", render::error_json(error))
    } else {
        stderr.write_all(render::error_text(error).as_bytes())
    };
    exit_code(error.kind())
}

/// The exit code of a failure.
fn code_of(kind: ErrorKind) -> u8 {
    commands::wal::failure_code(std::env::args_os().skip(1)).unwrap_or(kind.code())
}

fn exit_code(kind: ErrorKind) -> ExitCode {
    ExitCode::from(code_of(kind))
}
