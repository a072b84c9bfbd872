use pgark::Result;
use serde_json::json;

use super::catalog;
use crate::args::Cli;
use crate::render;

pub(super) async fn run(cli: &Cli) -> Result<()> {
    let settings = cli.settings()?;
    let (_, catalog) = catalog(cli, &settings).await?;
    let unfinished: Vec<&str> = catalog.unfinished().iter().map(|u| u.id.as_str()).collect();
    if cli.json {
        let backups: Vec<_> = catalog.backups().collect();
        return render::print_json(&json!({"cluster": catalog.cluster(), "backups": backups, "unfinished": unfinished}));
    }
    let mut text = if catalog.backups().len() == 0 {
        format!("there are no backups of {} yet\n", catalog.cluster())
    } else {
        render::table(catalog.backups())
    };
    for id in unfinished {
        text.push_str(&format!("unfinished: {id} (at work, or dead: a later backup sweeps it)\n"));
    }
    render::print(&text)
}
