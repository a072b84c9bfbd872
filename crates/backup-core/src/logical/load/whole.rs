//! Backups that are one archive or one script, as imports and earlier versions made them. They have no table of
//! contents: they are restored whole, by one tool, on one session.

use futures::{StreamExt, TryStreamExt};
use serde_json::{Map, Value};

use super::super::{ARCHIVE, DatabaseFacts, SQL};
use super::options::LoadOptions;
use super::preflight::Findings;
use super::target::{Ground, Target};
use super::{Load, Way, archive, rows, statistics, swap, told, warn};
use crate::dumper::{Ctx, PartSource};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::major_of;
use crate::store::Bytestream;

/// How much of a script is looked at before it is run.
const HEAD_BYTES: usize = 64 * 1024;

/// What the one part holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// An archive of `pg_dump`, in custom format.
    Archive,
    /// SQL that `psql` takes.
    Script,
}

/// The one part.
pub(super) struct Whole<'a> {
    source: &'a dyn PartSource,
    form: Form,
    part: u32,
}

impl<'a> Whole<'a> {
    pub(super) fn of(source: &'a dyn PartSource) -> Result<Self> {
        let parts = source.parts();
        let form = |kind: &str| match kind {
            ARCHIVE => Some(Form::Archive),
            SQL => Some(Form::Script),
            _ => None,
        };
        let found: Vec<(u32, Form)> =
            parts.iter().filter_map(|part| Some((part.part, form(&part.spec.kind)?))).collect();
        match found[..] {
            [(part, form)] => Ok(Self { source, form, part }),
            _ => Err(Error::new(
                ErrorKind::Integrity,
                format!("the backup has {} archives, not one", found.len()),
            )),
        }
    }

    /// Refuses what needs a table of contents.
    fn check(&self, options: &LoadOptions) -> Result<()> {
        let LoadOptions { no_owner, no_acl, no_tablespaces, schema_only, .. } = *options;
        let others = LoadOptions {
            no_owner: false,
            no_acl: false,
            no_tablespaces: false,
            schema_only: false,
            no_analyze: false,
            role: None,
            ..options.clone()
        };
        let in_archives = no_owner || no_acl || no_tablespaces || schema_only;
        if others == LoadOptions::default() && !(in_archives && self.form == Form::Script) {
            return Ok(());
        }
        let (what, hint) = match self.form {
            Form::Script => {
                ("a script", "restore it into a new database, with --role or --no-analyze at most")
            }
            Form::Archive => (
                "one archive",
                "restore it into a new database; --no-owner, --no-acl, --no-tablespaces, --schema-only, --role and --no-analyze can be said",
            ),
        };
        let message = format!("the backup is {what}, which is only restored whole");
        Err(Error::new(ErrorKind::Unsupported, message)
            .with_hint(format!("{hint}; pgark export writes what it holds to a file")))
    }

    async fn load(&self, target: &Target, load: &Load, ctx: &Ctx) -> Result<Vec<String>> {
        let data = self.source.open(self.part).await?;
        let (info, options, tools) = (target.info(), &load.options, &load.tools);
        match self.form {
            Form::Archive => {
                let dumped_by = self.source.facts().get("pg_dump_version").and_then(Value::as_str);
                let major = dumped_by.and_then(major_of).unwrap_or(0);
                archive::load(data, major, &info, target.major, options, tools, ctx).await
            }
            Form::Script => {
                let (head, rest) = head(data).await?;
                check_script(&head)?;
                let head = archive::without_new_setting(head, target.major);
                let data = futures::stream::iter([Ok(head.into())]).chain(rest).boxed();
                archive::run_psql(data, &info, target.major, options, tools, ctx).await
            }
        }
    }
}

/// The first bytes, and the others.
async fn head(data: Bytestream) -> Result<(Vec<u8>, Bytestream)> {
    let (mut head, mut data) = (Vec::new(), data.fuse());
    while head.len() < HEAD_BYTES {
        let Some(piece) = data.try_next().await? else { break };
        head.extend_from_slice(&piece);
    }
    Ok((head, data.boxed()))
}

/// A script of `pg_dump --create` makes its database itself and connects to it: whatever database is meant here would
/// not be the one.
fn check_script(head: &[u8]) -> Result<()> {
    let first = head.split(|byte| *byte == b'\n').find(|line| line.starts_with(b"-- Name: "));
    let makes = |line: &[u8]| line.windows(16).any(|piece| piece == b"; Type: DATABASE");
    if !first.is_some_and(makes) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        "the script makes its database itself: it was dumped with --create",
    )
    .with_hint(
        "pgark export --format plain writes it to a file that psql runs against the database postgres",
    ))
}

impl Load {
    /// Restores a backup that is one archive or one script.
    pub(super) async fn restore_whole(
        &self,
        source: &dyn PartSource,
        facts: &DatabaseFacts,
        ctx: &Ctx,
    ) -> Result<Map<String, Value>> {
        let ground = Ground::look(&self.connection).await?;
        let way = self.way(&ground, source)?;
        let whole = Whole::of(source)?;
        whole.check(&self.options)?;
        match way {
            Way::Fresh => {}
            Way::Swap { .. } => {
                let problems = swap::obstacles(&ground.maintenance, &ground.name, self.end_sessions).await?;
                Findings { problems, ..Findings::default() }.into_warnings()?;
            }
            Way::Add => {
                let message = "the backup is one archive or script, which is not added to what is there";
                return Err(Error::new(ErrorKind::Unsupported, message).with_hint(
                    "restore it into a new database, or let it take the place of this one with --swap",
                ));
            }
        }
        let target = self.target(ground, way, facts).await?;
        let done = async {
            let mut words = whole.load(&target, self, ctx).await?;
            if !self.options.no_analyze && !self.options.schema_only {
                let session = target.info().connect().await?;
                let names = statistics::names(&session).await?;
                let encoding = rows::encoding(&session).await?;
                words.extend(statistics::analyze(&session, &encoding, names, ctx).await?);
            }
            let Way::Swap { drop_old } = way else { return Ok((words, None)) };
            let swapped = swap::swap(&target, &self.connection, self.end_sessions, drop_old, ctx).await?;
            Ok((words, Some(swapped)))
        };
        match done.await {
            Ok((words, swapped)) => {
                warn(words, ctx);
                Ok(told(&target, swapped.map(|swapped| (swapped, &self.connection))))
            }
            Err(error) => Err(target.undo(&self.connection, error).await),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_that_makes_its_database_is_known() {
        let script = |kind: &str| {
            format!(
                "--\n-- PostgreSQL database dump\n--\n\n-- Name: a; Type: {kind}; Schema: -; Owner: b\n--\n-- Name: x; Type: DATABASE;"
            )
        };
        assert!(check_script(script("DATABASE").as_bytes()).is_err());
        for kind in ["SCHEMA", "TABLE", "EXTENSION"] {
            check_script(script(kind).as_bytes()).unwrap();
        }
        check_script(b"").unwrap();
    }
}
