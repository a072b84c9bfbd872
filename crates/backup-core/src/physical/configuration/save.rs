use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use tar::{EntryType, Header};

use super::{CONFIG, Outside};
use crate::dumper::{PartSink, PartSpec};
use crate::error::{Error, Result};
use crate::postgres::{Session, quote_literal};
use crate::tar_reader::{BLOCK, padding};

/// Bytes of a file that are read at most, and files: a configuration is small.
const LARGEST: usize = 1024 * 1024;
const MOST: usize = 200;

/// What was read over SQL.
#[derive(Debug, Default)]
pub(in crate::physical) struct Saved {
    pub(in crate::physical) outside: Outside,
    /// Files that could not be read, and why.
    pub(in crate::physical) warnings: Vec<String>,
    /// Whether the role may know where the files are.
    pub(in crate::physical) known: bool,
    files: BTreeMap<String, Vec<u8>>,
}

/// Reads the configuration files that are outside the data directory, and those that they include. What the role
/// may not read becomes a warning.
pub(in crate::physical) async fn read(session: &Session) -> Saved {
    let mut saved = Saved::default();
    let sql = "SELECT name, setting FROM pg_catalog.pg_settings \
               WHERE name IN ('data_directory', 'config_file', 'hba_file', 'ident_file')";
    let rows = session.rows(sql).await.unwrap_or_default();
    let mut settings: BTreeMap<String, String> =
        rows.into_iter().filter_map(|mut row| Some((row.swap_remove(0)?, row.pop().flatten()?))).collect();
    // Roles without pg_read_all_settings do not see any of them.
    let Some(data) = settings.remove("data_directory") else { return saved };
    saved.known = true;
    let outside = |path: &str| path.starts_with('/') && !path.starts_with(&format!("{data}/"));
    settings.retain(|_, path| outside(path));
    let mut wanted: BTreeSet<String> = settings.values().cloned().collect();
    wanted.extend(included(session).await.into_iter().filter(|path| outside(path)));
    for path in wanted.into_iter().take(MOST) {
        match contents(session, &path).await {
            Ok(contents) => drop(saved.files.insert(path, contents)),
            Err(why) => saved
                .warnings
                .push(format!("{path} is outside the data directory, and not in the backup: {why}")),
        }
    }
    let mut main = |name| settings.remove(name).filter(|path| saved.files.contains_key(path));
    saved.outside = Outside { config: main("config_file"), hba: main("hba_file"), ident: main("ident_file") };
    saved
}

/// The files that the server's files consist of, where the role may know it. Those of authentication can include
/// others from 16 on.
async fn included(session: &Session) -> Vec<String> {
    let mut found = Vec::new();
    for (view, column) in [
        ("pg_file_settings", "sourcefile"),
        ("pg_hba_file_rules", "file_name"),
        ("pg_ident_file_mappings", "file_name"),
    ] {
        let sql = format!("SELECT DISTINCT v.{column} FROM pg_catalog.{view} v ORDER BY 1");
        found.extend(session.rows(&sql).await.unwrap_or_default().into_iter().flatten().flatten());
    }
    found
}

/// A file of the server's host; the reason where there is none.
async fn contents(session: &Session, path: &str) -> std::result::Result<Vec<u8>, String> {
    header(path, 0)?;
    let sql = format!(
        "SELECT pg_catalog.encode(pg_catalog.pg_read_binary_file({}, 0, {}), 'hex')",
        quote_literal(path),
        LARGEST + 1
    );
    let text = session.value(&sql).await.map_err(|e| e.to_string())?.unwrap_or_default();
    let contents = from_hex(&text).ok_or("the server sent something else")?;
    if contents.len() > LARGEST {
        return Err("it is larger than 1 MiB".to_owned());
    }
    Ok(contents)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
    if rest.is_empty() { bytes } else { None }
}

impl Saved {
    /// Stores the files as a part, where there are any.
    pub(in crate::physical) async fn store(&self, parts: &Arc<dyn PartSink>) -> Result<()> {
        if self.files.is_empty() {
            return Ok(());
        }
        let spec = PartSpec { kind: CONFIG.to_owned(), name: CONFIG.to_owned() };
        let mut part = parts.open(spec).await?;
        for (path, contents) in &self.files {
            let size = contents.len() as u64;
            let header = header(path, size).map_err(Error::internal)?;
            part.write(Bytes::copy_from_slice(header.as_bytes())).await?;
            part.write(Bytes::copy_from_slice(contents)).await?;
            let padding = usize::try_from(padding(size)).unwrap_or(0);
            part.write(Bytes::from(vec![0; padding])).await?;
        }
        part.write(Bytes::from_static(&[0; 2 * BLOCK])).await?;
        part.finish().await.map(drop)
    }
}

fn header(path: &str, size: u64) -> std::result::Result<Header, String> {
    let mut header = Header::new_ustar();
    header.set_path(path.trim_start_matches('/')).map_err(|e| e.to_string())?;
    header.set_size(size);
    header.set_mode(0o600);
    header.set_entry_type(EntryType::Regular);
    header.set_cksum();
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_is_read() {
        assert_eq!(from_hex("00ff7A"), Some(vec![0, 255, 0x7a]));
        assert_eq!(from_hex(""), Some(Vec::new()));
        assert_eq!((from_hex("0"), from_hex("0g")), (None, None));
    }
}
