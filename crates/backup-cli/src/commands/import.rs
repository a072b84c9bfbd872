use pgark::{BackupBuilder, CancellationToken, Result};

use super::backup::tell;
use crate::args::{Cli, ImportArgs, apply_jobs};
use crate::progress;

pub(super) async fn run(cli: &Cli, args: &ImportArgs, cancel: &CancellationToken) -> Result<()> {
    let mut settings = cli.settings()?;
    args.write.apply(&mut settings);
    settings.compress = args.compress.clone().or_else(|| settings.compress.take());
    apply_jobs(args.jobs, &mut settings)?;
    let cluster = cli.cluster(&settings)?;
    let observer = progress::observer(cli.quiet, cli.json);
    let more = |builder: BackupBuilder| {
        let builder = builder.observer(observer);
        match &args.label {
            Some(label) => builder.label(label),
            None => builder,
        }
    };
    let done = settings.run_import(&cluster, &args.file, more, cancel).await?;
    tell(cli, "imported: backup", &done)
}
