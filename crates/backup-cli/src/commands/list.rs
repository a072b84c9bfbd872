use std::fmt::Write;

use pgark::Result;
use serde_json::json;

use crate::args::Cli;
use crate::render;

pub(super) async fn run(cli: &Cli) -> Result<()> {
    let settings = cli.settings()?;
    let listing = settings.list(&cli.cluster(&settings)?).await?;
    if cli.json {
        return render::print_json(&json!(listing));
    }
    let mut text = if listing.backups.is_empty() {
        format!("there are no backups of {} yet\n", listing.cluster)
    } else {
        render::table(listing.backups.iter())
    };
    for backup in listing.backups.iter().filter(|backup| render::has_damaged_pages(backup)) {
        let _ = writeln!(text, "damaged pages: {} (they failed their checksums when it was made)", backup.id);
    }
    for backup in listing.backups.iter().filter(|backup| !backup.is_complete()) {
        let failed = render::names(backup, "databases_failed");
        let _ = writeln!(text, "partial: {} (it lacks {failed}; latest does not mean it)", backup.id);
    }
    for (id, places) in listing.not_everywhere.iter().flatten() {
        let places: Vec<String> = places.iter().map(|place| render::shown(place)).collect();
        let _ = writeln!(text, "not in every copy: {id} (it is in {}; pgark sync)", places.join(", "));
    }
    for id in &listing.pinned {
        let _ = writeln!(text, "pinned: {id}");
    }
    for id in &listing.being_removed {
        let _ = writeln!(text, "being removed: {id} (latest does not mean it; pgark prune --apply ends it)");
    }
    for id in &listing.unfinished {
        let _ = writeln!(text, "unfinished: {id} (at work, or dead: a later backup sweeps it)");
    }
    render::print(&text)
}
