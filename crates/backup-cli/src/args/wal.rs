//! What is done with WAL.

use std::path::PathBuf;

use clap::Subcommand;

use super::ReadKeys;

// The comments are the help that people read in a terminal.
#[allow(clippy::doc_markdown)]
#[derive(Subcommand)]
pub(crate) enum WalCommand {
    /// Stores a WAL file: archive_command = 'pgark wal push %p'
    Push {
        /// The file, %p
        path: PathBuf,
        /// How many files that wait are pushed at once, in the background; 0 pushes none
        #[arg(long, value_name = "N", default_value_t = 2)]
        ahead: usize,
        /// Pushes the files that wait in the folder, and not this one
        #[arg(long, hide = true)]
        background: bool,
    },
    /// Fetches a WAL file: restore_command = 'pgark wal fetch %f %p'
    Fetch {
        /// Its name, %f
        name: String,
        /// Where it goes, %p
        to: PathBuf,
        /// How many segments behind it are read ahead, in the background; 0 reads none
        #[arg(long, value_name = "N", default_value_t = 8)]
        ahead: u64,
        /// Reads the segments behind it ahead, and not this one
        #[arg(long, hide = true)]
        background: bool,
        #[command(flatten)]
        keys: ReadKeys,
    },
    /// Streams WAL from the server until it is stopped, and acknowledges it when it is stored
    Receive {
        /// The server: "host=…", a URI; completed as libpq does (PG…, service, ~/.pgpass)
        #[arg(long, value_name = "CONNECTION")]
        db: Option<String>,
        /// Name of the replication slot
        #[arg(long, value_name = "NAME", default_value = "pgark")]
        slot: String,
        /// Makes the slot where it is not there
        #[arg(long)]
        create_slot: bool,
        /// Seconds that WAL waits at most; as a synchronous standby it never waits
        #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=30))]
        every: u64,
    },
    /// Shows timelines, gaps, and up to where each backup can be recovered
    List,
    /// Reads the archive through, compares every byte with its digest, and looks for gaps
    Verify {
        /// Compares the stored bytes only; needs no key
        #[arg(long)]
        stored: bool,
        #[command(flatten)]
        keys: ReadKeys,
        /// How much is done at once [default: all cores]
        #[arg(long, short, value_name = "N")]
        jobs: Option<usize>,
    },
    /// Says which one of several different files of a name counts; the others are kept
    Resolve {
        /// The segment
        segment: String,
        /// Digest of the one that counts, or its beginning
        digest: String,
    },
}
