//! The globals of a server, as `pg_dumpall --globals-only` writes them.

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;

use super::super::GLOBALS;
use super::Told;
use crate::dumper::{PartSink, PartSpec, PartWriter};
use crate::error::{Error, Result};
use crate::postgres::{Process, ProcessRun, Session, Tools};

const READ_BYTES: usize = 256 * 1024;

pub(super) struct Globals<'a> {
    pub(super) tools: &'a Tools,
    pub(super) no_role_passwords: bool,
}

impl Globals<'_> {
    /// Writes them into a part; its number, and whether passwords are in it.
    pub(super) async fn dump(
        &self,
        session: &Session,
        major: u32,
        parts: &dyn PartSink,
        told: &mut Told<'_>,
    ) -> Result<(u32, bool)> {
        let tool = self.tools.find_for("pg_dumpall", major, session.info()).await?;
        let may_read = "SELECT pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT')";
        let may_read = session.value(may_read).await?.as_deref() == Some("t");
        let mut args = vec![
            "--globals-only".to_owned(),
            "--no-password".to_owned(),
            format!("--database={}", session.info().database()),
        ];
        let passwords = may_read && !self.no_role_passwords;
        if !passwords {
            args.push("--no-role-passwords".to_owned());
        }
        if !may_read && !self.no_role_passwords {
            let user = session.info().user();
            told.warn(format!(
                "the globals are without the passwords of roles: {user} may not read pg_authid; with a superuser, or a \
                 member of pg_read_all_data, they have them"
            ));
        }
        let run =
            ProcessRun { tool: &tool, args, connection: Some(session.info()), stdin: false, stdout: true };
        let mut process = Process::start(run)?;
        let mut output = process.stdout()?;
        let cancel = told.ctx.cancel.clone();
        let written = async {
            let mut part =
                parts.open(PartSpec { kind: GLOBALS.to_owned(), name: "globals.sql".to_owned() }).await?;
            copy(&mut output, &mut *part).await?;
            Ok(part)
        };
        let written = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Error::cancelled()),
            written = written => written,
        };
        let part = match written {
            Ok(part) => part,
            Err(error) => {
                process.kill().await;
                return Err(error);
            }
        };
        for words in process.finish(&cancel).await.map_err(|e| e.doing("dumping the globals"))? {
            told.warn(format!("globals: {words}"));
        }
        Ok((part.finish().await?, passwords))
    }
}

async fn copy(output: &mut tokio::process::ChildStdout, part: &mut dyn PartWriter) -> Result<()> {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    loop {
        let read = output.read_buf(&mut buffer).await.map_err(|e| Error::io("reading from pg_dumpall", e))?;
        if read == 0 {
            return Ok(());
        }
        let piece: Bytes = buffer.split().freeze();
        part.write(piece).await?;
        buffer.reserve(READ_BYTES);
    }
}
