use clap::Args;

#[derive(Args)]
pub(crate) struct SyncArgs {
    /// How many objects are copied at once
    #[arg(long, short, value_name = "N", default_value_t = 4)]
    pub(crate) jobs: usize,
}
