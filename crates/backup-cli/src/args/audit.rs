//! What is asked of the audit log.

use clap::Subcommand;
use pgark::audit::Head;

#[derive(Subcommand)]
pub(crate) enum AuditCommand {
    /// Shows who did what
    List {
        /// Only the last entries
        #[arg(long, value_name = "N")]
        last: Option<u64>,
    },
    /// Reads the whole log: no entry was changed or removed, also since this host verified it last
    Verify {
        /// What an earlier verification printed as the last entry, kept in another place [default: what this host kept]
        #[arg(long, value_name = "NUMBER:DIGEST")]
        seen: Option<Head>,
    },
}
