use jiff::Timestamp;
use pgark::Result;
use pgark::config::until;
use pgark::retention::PinAnswer;
use serde_json::json;

use crate::args::{Cli, PinArgs, UnpinArgs};
use crate::render;

pub(super) async fn pin(cli: &Cli, args: &PinArgs) -> Result<()> {
    let settings = cli.settings()?;
    let cluster = cli.cluster(&settings)?;
    let until = until(&args.until, &settings.retention(&cluster).rules.zone, Timestamp::now())?;
    tell(cli, &settings.pin(&cluster, &args.backup, until).await?)
}

pub(super) async fn unpin(cli: &Cli, args: &UnpinArgs) -> Result<()> {
    let settings = cli.settings()?;
    tell(cli, &settings.unpin(&cli.cluster(&settings)?, &args.backup).await?)
}

fn tell(cli: &Cli, answer: &PinAnswer) -> Result<()> {
    if cli.json {
        return render::print_json(&json!(answer));
    }
    let mut text = match (answer.pinned, answer.until) {
        (false, _) => format!("backup {} is left to the retention rules\n", answer.id),
        (true, None) => format!("backup {} is kept until it is unpinned\n", answer.id),
        (true, Some(until)) => format!("backup {} is kept until {until:.0}\n", answer.id),
    };
    if answer.pinned && answer.being_removed {
        text.push_str("a prune has marked it for removal: if one is at work, it may come too late; the next one keeps it\n");
    } else if cli.quiet {
        return Ok(());
    }
    render::print(&text)
}
