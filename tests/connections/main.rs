//! Connections as libpq takes them, against real servers: TLS, logins, and where settings come from.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod backups;
mod certificates;
mod hosts;
mod logins;
mod places;
mod replication;
#[path = "../support/mod.rs"]
mod support;
mod tls;

use std::path::{Path, PathBuf};

use pgark::ErrorKind;
use pgark::postgres::{ConnInfo, Environment, TempServer, TempServerOptions, Tools};
use support::{free_port, server_with};

/// How an attempt to connect shall end.
#[derive(Debug, Clone, Copy)]
enum Ends {
    Encrypted,
    Plain,
    /// With this kind of error, and this word in the message or in a cause.
    Fails(ErrorKind, &'static str),
}

use Ends::{Encrypted, Fails, Plain};

/// An environment without variables. Its home is empty.
fn nothing() -> Environment {
    Environment {
        home: Some(PathBuf::from("/nonexistent")),
        user: Some("osuser".into()),
        ..Environment::default()
    }
}

fn at_home(home: &Path) -> Environment {
    Environment { home: Some(home.to_owned()), ..nothing() }
}

const IS_ENCRYPTED: &str = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

/// Connects, and compares how it ends. libpq itself must end the same way.
async fn expect(settings: &str, environment: &Environment, ends: Ends) {
    expect_alone(settings, environment, ends).await;
    let by_libpq = psql(settings, environment).await;
    match (&by_libpq, ends) {
        (Ok(tls), Encrypted) if tls == "t" => {}
        (Ok(tls), Plain) if tls == "f" => {}
        (Err(_), Fails(..)) => {}
        _ => panic!("{settings}: pgark is {ends:?}, and libpq {by_libpq:?}"),
    }
}

/// The same, where libpq differs.
async fn expect_alone(settings: &str, environment: &Environment, ends: Ends) {
    let connected = async {
        let session = ConnInfo::resolve(settings, environment)?.connect().await?;
        session.value(IS_ENCRYPTED).await
    };
    match (connected.await, ends) {
        (Ok(tls), Encrypted) => assert_eq!(tls.as_deref(), Some("t"), "{settings}: not encrypted"),
        (Ok(tls), Plain) => assert_eq!(tls.as_deref(), Some("f"), "{settings}: encrypted"),
        (Ok(_), Fails(..)) => panic!("{settings}: connected, and must fail: {ends:?}"),
        (Err(error), Fails(kind, word)) => {
            assert_eq!(error.kind(), kind, "{settings}: {error:?}");
            let words = format!("{error} {}", error.causes().join(" "));
            assert!(words.to_lowercase().contains(word), "{settings}: {word:?} is not in {error:?}");
            assert!(!error.to_string().contains('\n'), "{settings}: {error:?}");
            assert!(error.hint().is_some(), "{settings}: nothing says what to do: {error:?}");
        }
        (Err(error), _) => panic!("{settings}: must be {ends:?}: {error:?}"),
    }
}

/// What psql finds with the same settings: whether it is encrypted, or its complaint.
async fn psql(settings: &str, environment: &Environment) -> Result<String, String> {
    let tool = Tools::installed().find("psql", 15).unwrap();
    let mut command = tokio::process::Command::new(tool.path);
    command
        .args(["-X", "-A", "-t", "-w", "-c", IS_ENCRYPTED, "-d", settings])
        .env_clear()
        .envs(&environment.variables);
    command.env("HOME", environment.home.as_ref().unwrap()).kill_on_drop(true);
    let output =
        tokio::time::timeout(std::time::Duration::from_mins(1), command.output()).await.unwrap().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// A server on 127.0.0.1. What `hba` does not name is only let in through the socket.
fn listening(hba: &[&str], more: impl FnOnce(&mut TempServerOptions)) -> TempServer {
    let mut options = TempServerOptions::default();
    options.port = Some(free_port());
    options.hba = hba.iter().map(|line| (*line).to_owned()).collect();
    more(&mut options);
    server_with(&options)
}

/// The same with TLS.
fn with_tls(identity: &certificates::Identity, hba: &[&str]) -> TempServer {
    listening(hba, |options| serve(options, identity))
}

fn serve(options: &mut TempServerOptions, identity: &certificates::Identity) {
    options.settings.push("ssl = on".into());
    options.files.push(("server.crt".into(), identity.certificate.clone()));
    options.files.push(("server.key".into(), identity.key.clone()));
}

/// Writes a file below a folder, with a mode; its path.
fn write(folder: &Path, name: &str, contents: &str, mode: u32) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, contents).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path.display().to_string()
}
