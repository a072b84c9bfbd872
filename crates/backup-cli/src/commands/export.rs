use std::time::Instant;

use pgark::physical::{Export, KIND};
use pgark::{CancellationToken, Restore, Result};
use serde_json::json;

use super::{catalog, find, with_settings};
use crate::args::{Cli, ExportArgs, apply_jobs};
use crate::render;

pub(super) async fn run(cli: &Cli, args: &ExportArgs, cancel: &CancellationToken) -> Result<()> {
    let mut settings = cli.settings()?;
    args.keys.apply(&mut settings)?;
    apply_jobs(args.jobs, &mut settings)?;
    let (repository, catalog) = catalog(cli, &settings).await?;
    // Of others there is no such folder.
    let newest = catalog.backups().rfind(|backup| backup.kind == KIND).map(|backup| backup.id.to_string());
    let wanted = if args.backup == "latest" { newest.as_deref() } else { None };
    let record = find(&repository, &catalog, wanted.unwrap_or(&args.backup)).await?;
    let to = Export::to(&args.to).raw(args.raw);
    let to = args.tablespace_map.iter().fold(to, |to, (oid, path)| to.tablespace(*oid, path));
    let builder = Restore::builder().backup(repository, record).restorer(to);
    let begun = Instant::now();
    let exported = with_settings(builder, cli, &settings)?.build()?.run(cancel).await?;
    if cli.json {
        return render::print_json(&json!({"exported": exported}));
    }
    if cli.quiet {
        return Ok(());
    }
    render::print(&format!(
        "exported {} to {}: {} in {:.1} s\n",
        exported.backup.id,
        args.to.display(),
        render::bytes(exported.raw_bytes),
        begun.elapsed().as_secs_f64(),
    ))
}
