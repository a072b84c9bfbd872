use std::path::Path;
use std::time::Instant;

use pgark::physical::DataDirectory;
use pgark::postgres::ConnInfo;
use pgark::{CancellationToken, Restore, Result};
use serde_json::json;

use super::{catalog, find};
use crate::args::{Cli, RestoreArgs, apply_jobs};
use crate::{progress, render};

pub(super) async fn run(cli: &Cli, args: &RestoreArgs, cancel: &CancellationToken) -> Result<()> {
    let mut settings = cli.settings()?;
    args.keys.apply(&mut settings)?;
    apply_jobs(args.jobs, &mut settings)?;
    settings.pg_bin = args.pg_bin.clone().or(settings.pg_bin);
    let target = args.into.as_deref().map(ConnInfo::parse).transpose()?;
    let (repository, catalog) = catalog(cli, &settings).await?;
    let record = find(&repository, &catalog, &args.backup).await?;
    let builder = Restore::builder().backup(repository, record);
    let builder = match (target, &args.target_dir) {
        (Some(database), _) => builder.restorer(settings.restorer(database)),
        (None, folder) => {
            let folder = folder.as_deref().unwrap_or(Path::new("."));
            let moved = args.tablespace_map.iter();
            builder
                .restorer(moved.fold(DataDirectory::at(folder), |to, (oid, path)| to.tablespace(*oid, path)))
        }
    };
    let mut builder = builder.observer(progress::observer(cli.quiet, cli.json));
    if let Some(age) = settings.reader()? {
        builder = builder.encryptor(age);
    }
    if let Some(jobs) = settings.jobs {
        builder = builder.jobs(jobs);
    }
    let begun = Instant::now();
    let restored = builder.build()?.run(cancel).await?;
    if cli.json {
        return render::print_json(&json!({"restored": restored}));
    }
    if cli.quiet {
        return Ok(());
    }
    let text = |name: &str| restored.target.get(name).and_then(|v| v.as_str()).unwrap_or("-").to_owned();
    let place = match &args.target_dir {
        Some(folder) => format!("data directory {}", folder.display()),
        None => format!("database {}", text("database")),
    };
    render::print(&format!(
        "restored {} into {place} of PostgreSQL {}: {} in {:.1} s\n",
        restored.backup.id,
        text("server_version"),
        render::bytes(restored.raw_bytes),
        begun.elapsed().as_secs_f64(),
    ))
}
