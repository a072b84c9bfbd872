use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use pgark::crypt::{IdentityFile, generate_identity};
use pgark::repository::rotate_key;
use pgark::{Encryptor, Error, ErrorKind, Result};
use secrecy::ExposeSecret;
use serde_json::json;

use super::{catalog, find};
use crate::args::{Cli, KeyCommand, ReadKeys, refuse_secret};
use crate::render;

pub(super) async fn run(cli: &Cli, command: &KeyCommand) -> Result<()> {
    match command {
        KeyCommand::Generate { output } => generate(cli, output),
        KeyCommand::Recipient { identity } => {
            refuse_secret(identity)?;
            let recipients = IdentityFile::read(identity)?.recipients();
            if recipients.is_empty() {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "the recipient of an SSH key is its .pub file",
                ));
            }
            if cli.json {
                return render::print_json(&json!({"recipients": recipients}));
            }
            render::print(&(recipients.join("\n") + "\n"))
        }
        KeyCommand::Rotate { backup, all, recipient, new_passphrase_file, keys } => {
            rotate(cli, (backup, *all), (recipient, new_passphrase_file.as_deref()), keys).await
        }
    }
}

fn generate(cli: &Cli, output: &Path) -> Result<()> {
    let (text, recipient) = generate_identity(jiff::Timestamp::now());
    let doing = format!("writing the identity to {}", output.display());
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(output).map_err(|e| {
            if e.kind() == std::io::ErrorKind::AlreadyExists {
                Error::new(ErrorKind::Conflict, format!("{} exists already", output.display())).with_hint(
                    "choose another name: an identity is never replaced, since backups may need it",
                )
            } else {
                Error::io(&doing, e)
            }
        })?;
    file.write_all(text.expose_secret().as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|e| Error::io(&doing, e))?;
    if cli.json {
        return render::print_json(&json!({"identity_file": output, "recipient": recipient}));
    }
    render::print(&format!("{recipient}\n"))
}

async fn rotate(
    cli: &Cli,
    (backup, all): (&str, bool),
    (recipients, passphrase): (&[String], Option<&Path>),
    keys: &ReadKeys,
) -> Result<()> {
    let mut settings = cli.settings()?;
    let mut new = settings.clone();
    if !recipients.is_empty() {
        new.encryption.recipients = recipients.to_vec();
        new.encryption.passphrase_file = None;
    } else if let Some(path) = passphrase {
        new.encryption.recipients.clear();
        new.encryption.passphrase_file = Some(path.to_owned());
    }
    keys.apply(&mut settings)?;
    let missing = |what: &str, hint: &str| Error::new(ErrorKind::KeyMissing, what.to_owned()).with_hint(hint);
    let new = new.writer()?.ok_or_else(|| {
        missing("nobody is named who shall read it", "give --recipient, or --new-passphrase-file FILE")
    })?;
    let old = settings.reader()?.ok_or_else(|| {
        missing("a key is needed to open the backup's key", "give --identity FILE, or --passphrase-file FILE")
    })?;
    let (old, new): (Arc<dyn Encryptor>, Arc<dyn Encryptor>) = (Arc::new(old), Arc::new(new));
    let (repository, catalog) = catalog(cli, &settings).await?;
    let wanted: Vec<String> = if all {
        catalog.staying().filter(|b| b.encryption.is_some()).map(|b| b.id.to_string()).collect()
    } else {
        vec![backup.to_owned()]
    };
    let mut done = Vec::new();
    let mut text = String::new();
    let mut first_error = None;
    for backup in wanted {
        let rotated = async {
            let record = find(&repository, &catalog, &backup).await?;
            let rotated = rotate_key(&repository, &record, &old, &new).await;
            let rotated = rotated.map_err(|e| e.doing(format!("rotating the key of {}", record.id)))?;
            Ok((record.id.clone(), rotated))
        };
        let (id, rotated) = match rotated.await {
            Ok(rotated) => rotated,
            // The others are rotated all the same: whoever lost a key wants as much done as can be.
            Err(error) => {
                first_error = first_error.or(Some(error));
                continue;
            }
        };
        let _ = writeln!(text, "{id}: its key is sealed anew in {}", rotated.created);
        if !rotated.remaining.is_empty() {
            let remaining = rotated.remaining.join(", ");
            let _ = writeln!(text, "  the store keeps {remaining}: whoever could read the backup still can");
        }
        done.push(json!({"id": id, "created": rotated.created, "remaining": rotated.remaining}));
    }
    // A failure that changed nothing says nothing here.
    if cli.json && (first_error.is_none() || !done.is_empty()) {
        render::print_json(&json!({"rotated": done}))?;
    } else if !cli.json && !cli.quiet {
        render::print(&text)?;
    }
    first_error.map_or(Ok(()), Err)
}
