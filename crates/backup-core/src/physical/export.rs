use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures::TryStreamExt;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};

use super::clear::{Names, version_folder};
use super::configuration::CONFIG;
use super::increment::made_path;
use super::journal::Mark;
use super::manifest::{Line, hex, rewrite};
use super::place::{LABEL, Looked, Place, Wanted, is_empty, not_empty};
use super::restore::{LEFT_OUT, Unpacked, incomplete, targets, unpack_backup};
use super::unpack::{below, blocking, own, unpack};
use super::{DELTA, KIND, LIST, archived};
use crate::dumper::{Ctx, PartSource, Restorer};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;

/// Writes a physical backup as stock tools have it: a folder like that of `pg_basebackup --format=plain`, with the WAL that
/// makes it consistent and a manifest that `pg_verifybackup` accepts. Each tablespace has a folder beside it:
/// `<folder>.tablespace-<OID>`. Configuration that was outside the data directory is not in it.
#[derive(Debug, Clone)]
pub struct Export {
    path: PathBuf,
    tablespaces: BTreeMap<u32, PathBuf>,
    raw: bool,
}

impl Export {
    /// Exports to a folder that is empty or not there; a chain becomes one full backup. An export that was interrupted goes
    /// on.
    pub fn to(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), tablespaces: BTreeMap::new(), raw: false }
    }

    /// Exports the chain as it is, each backup to a folder of its own, from `1` for the full one: `pg_combinebackup` takes
    /// them in this order. Only of increments that the server made. What an interrupted one left has to be removed.
    #[must_use]
    pub fn raw(mut self, raw: bool) -> Self {
        self.raw = raw;
        self
    }

    /// Where the tablespace with an OID goes, in place of the folder beside. Not with [`raw`](Self::raw).
    #[must_use]
    pub fn tablespace(mut self, oid: u32, path: impl Into<PathBuf>) -> Self {
        self.tablespaces.insert(oid, path.into());
        self
    }

    fn wanted(&self, path: &Path, backup: String, parts: &dyn PartSource) -> Result<Wanted> {
        // A server would not start on one that is within the data directory (`CheckTablespaceDirectory` in xlogrecovery.c).
        let beside = |oid: u32| {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".tablespace-{oid}"));
            PathBuf::from(name)
        };
        Ok(Wanted {
            backup,
            targets: targets(path, &self.tablespaces, parts.contents(), |t| beside(t.oid))?,
            over: None,
            version_folder: version_folder(parts.facts().get("server_version")).unwrap_or_default(),
        })
    }

    async fn combined(&self, parts: &Arc<dyn PartSource>, ctx: &Ctx) -> Result<Value> {
        let backup = ctx.backup.as_ref().map(ToString::to_string).unwrap_or_default();
        let wanted = self.wanted(&self.path, backup, &**parts)?;
        let Unpacked { place, resumed, .. } = unpack_backup(parts, wanted, ctx).await?;
        complete(place, true, &self.path).await?;
        Ok(resumed.map(|resumed| resumed.json()).into())
    }

    /// One backup of a chain, as the server sent it.
    async fn one(&self, path: &Path, step: &dyn PartSource, ctx: &Ctx) -> Result<()> {
        let wanted = self.wanted(path, step.name(), step)?;
        let version_folder = wanted.version_folder.clone();
        let looked = blocking(move || Looked::at(wanted)).await?;
        let prepare = blocking(move || looked.prepare(&Names::default()));
        let (place, _) = prepare.await.map_err(|e| incomplete(e, path))?;
        let mut ground = place.ground(true, version_folder, &Arc::default());
        ground.as_sent = true;
        let (ground, journal) = (&ground, &place.journal);
        let all = step.parts().into_iter().filter(|part| !matches!(part.spec.kind.as_str(), LIST | CONFIG));
        let unpacking =
            futures::stream::iter(all.map(Ok)).try_for_each_concurrent(ctx.jobs, |part| async move {
                unpack(step, &part, ground).await?;
                journal.mark(Mark::Part { step: 0, part: part.part })
            });
        let unpacked = tokio::select! {
            biased;
            () = ctx.cancel.cancelled() => Err(Error::cancelled()),
            unpacked = unpacking => unpacked,
        };
        unpacked.map_err(|e| incomplete(e, path))?;
        complete(place, false, path).await
    }
}

async fn complete(place: Place, combined: bool, path: &Path) -> Result<()> {
    blocking(move || place.complete_export(combined)).await.map_err(|e| incomplete(e, path))
}

#[async_trait]
impl Restorer for Export {
    fn accepts(&self, kind: &str) -> bool {
        kind == KIND
    }

    async fn restore(&self, parts: Arc<dyn PartSource>, ctx: &Ctx) -> Result<Map<String, Value>> {
        let steps: Vec<&dyn PartSource> =
            parts.ancestors().iter().chain([&parts]).map(|step| &**step).collect();
        if !archived::brings_wal(parts.facts()) {
            let message = "the backup's WAL is in the WAL archive and not in the folder: pg_verifybackup needs --no-parse-wal";
            ctx.observer.event(&Event::Warning { message: message.to_owned() });
        }
        let mut target = Map::new();
        target.insert("folder".to_owned(), json!(self.path));
        if !self.raw {
            target.insert("resumed".to_owned(), self.combined(&parts, ctx).await?);
            return Ok(target);
        }
        if let Some(own) = steps.iter().find(|step| step.parts().iter().any(|part| part.spec.kind == DELTA)) {
            let message =
                format!("{} is an increment of pgark's own, which no stock tool can combine", own.name());
            return Err(Error::new(ErrorKind::Unsupported, message).with_hint(
                "leave out --raw: the chain becomes one full backup; --server-summaries makes others",
            ));
        }
        if !is_empty(&self.path)? {
            return Err(not_empty(&self.path));
        }
        let mut folders = Vec::new();
        for (number, step) in (1..).zip(steps) {
            let folder = self.path.join(number.to_string());
            let what = format!("exporting {} to {}", step.name(), folder.display());
            ctx.observer.event(&Event::Step { what });
            self.one(&folder, step, ctx).await?;
            folders.push(folder);
        }
        target.insert("folders".to_owned(), json!(folders));
        Ok(target)
    }
}

/// Makes the server's manifest one of the files that are there. Entries of files that are as they were sent stay, with
/// their checksums; of what was made here (`combined`) they are made anew. It can be done again.
pub(super) fn write_manifest(base: &Path, owner: Option<(u32, u32)>, combined: bool) -> Result<()> {
    let (path, until_then) = (base.join("backup_manifest"), base.join("backup_manifest.pgark"));
    let failed = |e| Error::io(format!("writing {}", path.display()), e);
    let change = |listed: &[u8], _: Option<u64>| {
        if LEFT_OUT.iter().any(|left_out| listed == left_out.as_bytes()) {
            return Ok(Line::LeaveOut);
        }
        match made_path(listed).filter(|_| combined) {
            Some(made) => entry(base, &made).map(Line::Instead),
            // Lines were taken out of it, if the server made the increment.
            None if combined && listed == LABEL.as_bytes() => entry(base, listed).map(Line::Instead),
            None => Ok(Line::Keep),
        }
    };
    let input = BufReader::with_capacity(64 * 1024, File::open(&path).map_err(failed)?);
    let mut output = BufWriter::with_capacity(64 * 1024, File::create(&until_then).map_err(failed)?);
    rewrite(input, change, |bytes| output.write_all(bytes).map_err(failed))?;
    let mut written = || {
        output.flush()?;
        std::fs::set_permissions(&until_then, std::fs::metadata(&path)?.permissions())?;
        own(&until_then, owner)?;
        std::fs::rename(&until_then, &path)
    };
    written().map_err(failed)
}

/// The entry of a file that is there (`AddFileToBackupManifest` in `backup_manifest.c`).
fn entry(base: &Path, listed: &[u8]) -> Result<String> {
    let path = base.join(below(listed)?);
    let failed = |e| Error::io(format!("reading {}", path.display()), e);
    let mut file = File::open(&path).map_err(failed)?;
    let modified = file.metadata().and_then(|found| found.modified()).map_err(failed)?;
    let modified = Timestamp::try_from(modified).unwrap_or(Timestamp::UNIX_EPOCH).to_zoned(TimeZone::UTC);
    let (mut buffer, mut bytes, mut crc) = (vec![0; 256 * 1024], 0_u64, 0);
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => break,
            read => {
                bytes += read as u64;
                crc = crc32c::crc32c_append(crc, &buffer[..read]);
            }
        }
    }
    let name = match std::str::from_utf8(listed) {
        Ok(text) => format!("\"Path\": {}", json!(text)),
        Err(_) => format!("\"Encoded-Path\": \"{}\"", hex(listed)),
    };
    Ok(format!(
        "{{ {name}, \"Size\": {bytes}, \"Last-Modified\": \"{}\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{}\" }}",
        modified.strftime("%Y-%m-%d %H:%M:%S GMT"),
        hex(&crc.to_le_bytes())
    ))
}
