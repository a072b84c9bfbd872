use pgark::Result;
use serde_json::json;

use crate::args::Cli;
use crate::render;

pub(super) async fn run(cli: &Cli) -> Result<()> {
    let (repository, new) = cli.settings()?.init_places().await?;
    let location = repository.store().location();
    let abilities = repository.abilities();
    if cli.json {
        return render::print_json(
            &json!({"repository": repository.id(), "location": location, "new": new, "abilities": abilities}),
        );
    }
    if cli.quiet {
        return Ok(());
    }
    let mut text = if new {
        format!("made a repository at {location}\n")
    } else {
        format!("there is a repository at {location} already\n")
    };
    if !abilities.conditional_create {
        text.push_str("warning: the store does not refuse to create what exists; two writers of one backup would not notice each other\n");
    }
    if !abilities.delete {
        text.push_str(
            "note: the store does not let these credentials delete; what dead runs leave will stay\n",
        );
    }
    render::print(&text)
}
