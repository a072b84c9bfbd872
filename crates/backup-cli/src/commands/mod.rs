//! One file a verb.

mod audit;
mod backup;
mod check;
mod confirm;
mod copy;
mod demo;
mod drill;
mod export;
mod import;
mod init;
mod key;
mod list;
mod pin;
mod prune;
mod recover;
mod restore;
mod safety;
mod show;
mod status;
mod sync;
mod verify;
pub(crate) mod wal;

use std::process::ExitCode;

use clap::CommandFactory;
use pgark::config::Settings;
use pgark::repository::{BackupRecord, Catalog, ClusterName};
use pgark::{CancellationToken, Repository, RestoreBuilder, Result};

use crate::args::{Cli, Command};
use crate::progress;

/// Does what was asked for. `Ok` with another code than success where the work itself went well and its answer
/// is bad news.
pub(crate) async fn run(cli: Cli, cancel: &CancellationToken) -> Result<ExitCode> {
    match &cli.command {
        Command::Init => init::run(&cli).await?,
        Command::Backup(args) => return backup::run(&cli, args, cancel).await,
        Command::Status(args) => return status::run(&cli, args).await,
        Command::Check(args) => return check::run(&cli, args).await,
        Command::List => list::run(&cli).await?,
        Command::Show(args) => show::run(&cli, args, cancel).await?,
        Command::Restore(args) => Box::pin(restore::run(&cli, args, cancel)).await?,
        Command::Recover(args) => Box::pin(recover::run(&cli, args, cancel)).await?,
        Command::Export(args) => export::run(&cli, args, cancel).await?,
        Command::Import(args) => return import::run(&cli, args, cancel).await,
        Command::Verify(args) => return verify::run(&cli, args, cancel).await,
        Command::Copy(args) => copy::run(&cli, args, cancel).await?,
        Command::Sync(args) => return sync::run(&cli, args, cancel).await,
        Command::Prune(args) => return prune::run(&cli, args, cancel).await,
        Command::Pin(args) => pin::pin(&cli, args).await?,
        Command::Unpin(args) => pin::unpin(&cli, args).await?,
        Command::Drill(args) => return drill::run(&cli, args, cancel).await,
        Command::Wal(command) => return wal::run(&cli, command, cancel).await,
        Command::Audit(command) => return audit::run(&cli, command).await,
        Command::Key(command) => key::run(&cli, command).await?,
        Command::Demo(args) => demo::run(&cli, args, cancel).await?,
        Command::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "pgark", &mut out);
            crate::render::print(&String::from_utf8_lossy(&out))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The repository and the catalog of the cluster.
async fn catalog(cli: &Cli, settings: &Settings) -> Result<(Repository, Catalog)> {
    let cluster: ClusterName = cli.cluster(settings)?;
    let repository = settings.open_repository().await?;
    let catalog = Catalog::load(&repository, &cluster).await?;
    Ok((repository, catalog))
}

/// The record of the backup that an argument means.
async fn find(repository: &Repository, catalog: &Catalog, wanted: &str) -> Result<BackupRecord> {
    let id = catalog.find(wanted)?.id.clone();
    repository.record(catalog.cluster(), &id).await
}

/// Adds to a restore what arguments and settings say of keys and jobs.
fn with_settings(builder: RestoreBuilder, cli: &Cli, settings: &Settings) -> Result<RestoreBuilder> {
    let mut builder = builder.observer(progress::observer(cli.quiet, cli.json));
    if let Some(age) = settings.reader()? {
        builder = builder.encryptor(age);
    }
    Ok(match settings.jobs {
        Some(jobs) => builder.jobs(jobs),
        None => builder,
    })
}
