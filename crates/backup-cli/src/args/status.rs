//! What is asked of the protection of clusters.

use clap::Args;

#[derive(Args)]
pub(crate) struct StatusArgs {
    /// Every cluster of the repository
    #[arg(long)]
    pub(crate) all: bool,
}
