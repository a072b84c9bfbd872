use clap::Args;

use super::{ReadKeys, WriteKeys};

/// Which backups, and where they go.
#[derive(Args)]
pub(crate) struct CopyArgs {
    /// latest, an id, or the beginning of one (several, divided by spaces)
    #[arg(default_value = "latest")]
    pub(crate) backups: Vec<String>,
    /// Every backup of the cluster
    #[arg(long, conflicts_with = "backups")]
    pub(crate) all: bool,
    /// The other repository, made where its place is empty (several times: it is kept in all of them). What
    /// pgark.toml says of a place counts here too
    #[arg(long, value_name = "URL", required = true)]
    pub(crate) to: Vec<String>,
    /// Copies all WAL from the first of the backups on; otherwise only what a backup cannot be restored without
    #[arg(long)]
    pub(crate) wal: bool,
    /// Seals everything with new keys, for the recipients or the new passphrase: who could read the backups cannot read the
    /// copies. Without it the bytes are copied as they are
    #[arg(long)]
    pub(crate) re_encrypt: bool,
    /// Who can read the copies, with --re-encrypt: age1… or an SSH public key (may be given several times)
    #[arg(long, short, value_name = "RECIPIENT", requires = "re_encrypt")]
    pub(crate) recipient: Vec<String>,
    /// Seals the copies with the passphrase in the first line of a file instead
    #[arg(long, value_name = "FILE", requires = "re_encrypt", conflicts_with = "recipient")]
    pub(crate) new_passphrase_file: Option<std::path::PathBuf>,
    #[command(flatten)]
    pub(crate) keys: ReadKeys,
    /// How many objects are copied at once
    #[arg(long, short, value_name = "N", default_value_t = 4)]
    pub(crate) jobs: usize,
}

impl CopyArgs {
    /// Who can read the copies; those of the file where none are named.
    pub(crate) fn writers(&self) -> Option<WriteKeys> {
        self.re_encrypt.then(|| WriteKeys {
            recipient: self.recipient.clone(),
            passphrase_file: self.new_passphrase_file.clone(),
        })
    }
}
