use std::path::Path;
use std::time::Instant;

use pgark::physical::{Export, KIND};
use pgark::repository::Catalog;
use pgark::{CancellationToken, Error, ErrorKind, Restore, RestoreBuilder, Result, logical};
use serde_json::json;

use super::{catalog, find, with_settings};
use crate::args::{Cli, ExportArgs, apply_jobs};
use crate::render;

pub(super) async fn run(cli: &Cli, args: &ExportArgs, cancel: &CancellationToken) -> Result<()> {
    let mut settings = cli.settings()?;
    args.keys.apply(&mut settings)?;
    apply_jobs(args.jobs, &mut settings)?;
    settings.pg_bin = args.logical.pg_bin.clone().or_else(|| settings.pg_bin.take());
    let (repository, catalog) = catalog(cli, &settings).await?;
    let record = find(&repository, &catalog, &wanted(args, &catalog)).await?;
    let is_logical = record.kind == logical::KIND;
    let to_stdout = is_logical && args.to == Path::new("-");
    if to_stdout && cli.json {
        let message = "the answer and the export cannot both go to standard output";
        return Err(Error::new(ErrorKind::Usage, message).with_hint("leave --json out, or name a file"));
    }
    let builder = Restore::builder().backup(repository, record);
    let builder = if is_logical {
        logical_export(builder, args, to_stdout, settings.tools())?
    } else {
        physical_export(builder, args)?
    };
    let begun = Instant::now();
    let exported = with_settings(builder, cli, &settings)?.build()?.run(cancel).await?;
    if cli.json {
        return render::print_json(&json!({"exported": exported}));
    }
    if cli.quiet || to_stdout {
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

/// The backup that is meant. Of the newest ones, it is the one that has what is asked for; unless something says that it
/// is a logical one, the newest physical backup where there is one.
fn wanted(args: &ExportArgs, catalog: &Catalog) -> String {
    if args.backup != "latest" {
        return args.backup.clone();
    }
    let newest = |kind: &str| catalog.staying().rfind(|backup| backup.kind == kind).map(|b| b.id.to_string());
    let physical = if args.logical.any() { None } else { newest(KIND) };
    physical.or_else(|| newest(logical::KIND)).unwrap_or_else(|| args.backup.clone())
}

fn physical_export(builder: RestoreBuilder, args: &ExportArgs) -> Result<RestoreBuilder> {
    if args.logical.any() {
        let message = "the backup is a physical one, which has no tables to be read";
        return Err(Error::new(ErrorKind::Usage, message).with_hint(
            "leave out --format, --table, --database and --compress: it becomes a data directory",
        ));
    }
    let to = Export::to(&args.to).raw(args.raw);
    let to = args.tablespace_map.iter().fold(to, |to, (oid, path)| to.tablespace(*oid, path));
    Ok(builder.restorer(to))
}

fn logical_export(
    builder: RestoreBuilder,
    args: &ExportArgs,
    to_stdout: bool,
    tools: pgark::postgres::Tools,
) -> Result<RestoreBuilder> {
    if args.raw || !args.tablespace_map.is_empty() {
        let message = "--raw and --tablespace-map are for physical backups, and this is a logical one";
        return Err(Error::new(ErrorKind::Usage, message).with_hint("leave them out, or name another backup"));
    }
    let format = args.logical.format()?;
    let export = if to_stdout {
        logical::Export::to_stream(std::io::stdout(), format)
    } else {
        logical::Export::to(&args.to, format)
    };
    let options = (args.logical.compress, args.logical.database.clone());
    Ok(builder.restorer(export.compress(options.0).database(options.1).tools(tools)))
}
