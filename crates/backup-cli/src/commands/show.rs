use std::fmt::Write as _;

use pgark::Result;
use serde_json::json;

use super::{catalog, find};
use crate::args::{Cli, ShowArgs};
use crate::render;

pub(super) async fn run(cli: &Cli, args: &ShowArgs) -> Result<()> {
    let settings = cli.settings()?;
    let (repository, catalog) = catalog(cli, &settings).await?;
    let record = find(&repository, &catalog, &args.backup).await?;
    if cli.json {
        return render::print_json(&json!({"backup": record}));
    }
    let mut text = render::summary(&record);
    for object in record.objects() {
        let (key, bytes) = (render::shown(&object.key), render::bytes(object.bytes));
        let _ = writeln!(text, "{:<12} {key} ({bytes})", "object");
    }
    render::print(&text)
}
