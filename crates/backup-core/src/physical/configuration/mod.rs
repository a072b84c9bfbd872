//! Configuration files that a server reads from outside its data directory, as Debian's do. A base backup does not
//! have them: they are read over SQL, stored as a part, and put where a restored server finds them.

mod place;
mod save;

use serde::{Deserialize, Serialize};

pub(super) use place::place;
pub(super) use save::{Saved, read};

/// Kind and name of the part: a tar archive. Its members are named as the files, without the first slash.
pub(super) const CONFIG: &str = "config";
/// Where the files as they were are put, within the restored data directory.
pub(super) const FOLDER: &str = "pgark.config";
/// Name of [`Outside`] in a backup's contents.
pub(super) const CONTENTS: &str = "configuration";

/// The main files that are outside the data directory and in the backup, by the settings that name them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outside {
    #[serde(rename = "config_file", skip_serializing_if = "Option::is_none")]
    pub(super) config: Option<String>,
    #[serde(rename = "hba_file", skip_serializing_if = "Option::is_none")]
    pub(super) hba: Option<String>,
    #[serde(rename = "ident_file", skip_serializing_if = "Option::is_none")]
    pub(super) ident: Option<String>,
}
