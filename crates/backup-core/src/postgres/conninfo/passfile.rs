//! The password file (PostgreSQL documentation, "The Password File").

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::Host;
use crate::error::{Error, Result};

/// The password of the first line that fits. A file that others can read is not used, as in libpq.
pub(super) fn look_up(path: &Path, host: &Host, database: &str, user: &str) -> Result<Option<String>> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata,
        _ => return Ok(None),
    };
    if metadata.permissions().mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "the password file can be read by others and is not used: chmod 0600");
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("reading the password file", e))?;
    // A Unix socket in a default folder goes by the name of localhost.
    let name = match host.name.as_str() {
        "/tmp" | "/var/run/postgresql" | "/run/postgresql" => "localhost",
        name => name,
    };
    let port = host.port.to_string();
    let wanted = [name, &port, database, user];
    Ok(text.lines().filter(|l| !l.starts_with('#')).find_map(|line| fits(line, wanted, &host.name)))
}

fn fits(line: &str, wanted: [&str; 4], host: &str) -> Option<String> {
    let fields = fields(line);
    let [fields @ .., password] = <[String; 5]>::try_from(fields).ok()?;
    let matches = |field: &str, wanted: &str| field == "*" || field == wanted;
    let all = fields.iter().zip(wanted).enumerate().all(|(i, (f, w))| matches(f, w) || (i == 0 && f == host));
    all.then_some(password)
}

/// Five fields divided by `:`; `\` takes the next character as it is. The password keeps further colons.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let last = fields.len() == 5;
        match c {
            ':' if !last => fields.push(String::new()),
            c => {
                let c = if c == '\\' { chars.next().unwrap_or('\\') } else { c };
                if let Some(field) = fields.last_mut() {
                    field.push(c);
                }
            }
        }
    }
    fields
}
