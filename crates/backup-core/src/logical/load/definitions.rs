//! Definitions, through stock `pg_restore` from the table of contents alone.

use std::path::Path;

use tempfile::TempDir;

use super::super::archive::{BLOBS, TABLE_DATA, Toc};
use super::archive::{needs_script, plain_name, run_script};
use super::options::LoadOptions;
use crate::dumper::Ctx;
use crate::error::{Error, Result};
use crate::postgres::{ConnInfo, Process, ProcessRun, Tool, Tools};

/// Memory of the sessions that build indexes, together; PostgreSQL's own setting counts where it is higher.
const INDEX_MEMORY_MIB: usize = 512;

/// What restores the definitions of one database.
pub(super) struct Definitions<'a> {
    folder: TempDir,
    tool: Tool,
    tools: &'a Tools,
    options: &'a LoadOptions,
    info: ConnInfo,
    target_major: u32,
}

impl<'a> Definitions<'a> {
    /// Puts the table of contents where `pg_restore` reads it.
    pub(super) fn new(
        toc: &Toc,
        info: &ConnInfo,
        target_major: u32,
        tools: &'a Tools,
        options: &'a LoadOptions,
    ) -> Result<Self> {
        // pg_restore refuses archives of a newer pg_dump, and does best with a server of its own version.
        let tool = tools.find("pg_restore", toc.header.dump_major().max(target_major))?;
        let folder = TempDir::with_prefix("pgark-")
            .map_err(|e| Error::io("making a temporary folder for the table of contents", e))?;
        write(folder.path(), "toc.dat", &toc.to_bytes())?;
        // Definitions of large objects and sequences' values are among the data, and need no file.
        let others = toc.entries.iter().filter(|entry| entry.kind != TABLE_DATA && entry.kind != BLOBS);
        let list: Vec<String> = others.map(|entry| format!("{};", entry.id)).collect();
        write(folder.path(), "without-rows", (list.join("\n") + "\n").as_bytes())?;
        Ok(Self { folder, tool, tools, options, info: info.clone(), target_major })
    }

    /// What comes before the rows.
    pub(super) async fn before(&self, ctx: &Ctx) -> Result<Vec<String>> {
        self.section("pre-data", 1, &self.info, ctx).await
    }

    /// Values of sequences, and definitions of large objects where they are among the data.
    pub(super) async fn beside(&self, ctx: &Ctx) -> Result<Vec<String>> {
        self.section("data", 1, &self.info, ctx).await
    }

    /// What comes after the rows: indexes, constraints, triggers, materialized views.
    pub(super) async fn after(&self, ctx: &Ctx) -> Result<Vec<String>> {
        let session = self.info.connect().await?;
        let sql =
            "SELECT setting::bigint / 1024 FROM pg_catalog.pg_settings WHERE name = 'maintenance_work_mem'";
        let current: usize = session.value(sql).await?.and_then(|mib| mib.parse().ok()).unwrap_or(0);
        let wanted = INDEX_MEMORY_MIB / ctx.jobs.max(1);
        let info = if current < wanted {
            self.info.with_options(&format!("-c maintenance_work_mem={wanted}MB"))
        } else {
            self.info.clone()
        };
        self.section("post-data", ctx.jobs, &info, ctx).await
    }

    async fn section(&self, section: &str, jobs: usize, info: &ConnInfo, ctx: &Ctx) -> Result<Vec<String>> {
        let info = info.with_options("-c synchronous_commit=off");
        let script = needs_script(&self.tool, self.target_major);
        let mut args = vec![format!("--section={section}"), "--no-password".to_owned()];
        args.extend(self.options.arguments());
        if section == "data" {
            args.push(format!("--use-list={}", self.folder.path().join("without-rows").display()));
        }
        if script {
            args.push("--file=-".to_owned());
        } else {
            args.push("--exit-on-error".to_owned());
            args.push(format!("--dbname={}", plain_name(info.database())));
            args.push(format!("--jobs={jobs}"));
        }
        args.push(self.folder.path().display().to_string());
        let connection = (!script).then_some(&info);
        let run = ProcessRun { tool: &self.tool, args, connection, stdin: false, stdout: script };
        let mut process = Process::start(run)?;
        let mut words = Vec::new();
        if script {
            words = match run_script(&mut process, &info, &self.tool, self.tools, ctx).await {
                Ok(words) => words,
                Err(error) => {
                    process.kill().await;
                    return Err(error);
                }
            };
        }
        words.extend(process.finish(&ctx.cancel).await?);
        Ok(words)
    }
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = folder.join(name);
    std::fs::write(&path, bytes).map_err(|e| Error::io(format!("writing {}", path.display()), e))
}
