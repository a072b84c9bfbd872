//! Where the throwaway server comes from: this host's programs, or a container.

use std::path::{Path, PathBuf};

use super::container;
use super::workplace::Workplace;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::{ServerPrograms, Tools, major_of, server_owner};

/// Where the programs are.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// A folder of this host.
    Here(PathBuf),
    /// A container of an image.
    Image(String),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Here(_) => f.write_str("this host"),
            Self::Image(image) => write!(f, "docker image {image}"),
        }
    }
}

impl Place {
    /// This host's programs of exactly this version; else a container, where Docker is there. It blocks.
    pub(super) fn find(tools: &Tools, major: u32, docker: bool, image: Option<&str>) -> Result<Self> {
        let image = image.unwrap_or("postgres:{major}").replace("{major}", &major.to_string());
        let here =
            if docker { None } else { tools.find("pg_ctl", major).ok().filter(|tool| tool.major == major) };
        if let Some(tool) = here {
            return Ok(Self::Here(tool.path.parent().map(Path::to_owned).unwrap_or_default()));
        }
        if container::is_there() {
            return Ok(Self::Image(image));
        }
        let message =
            format!("there are no server programs of PostgreSQL {major} here, and Docker does not answer");
        let message = if docker { "Docker does not answer".to_owned() } else { message };
        Err(Error::new(ErrorKind::ToolMissing, message).with_hint(format!(
            "install postgresql-{major}, name its folder with --pg-bin, or let this user use Docker"
        )))
    }

    /// Whom the server runs as, where this process is root.
    pub(super) fn owner(&self) -> Result<Option<(u32, u32)>> {
        match (self, server_owner()) {
            // A container needs no user of this host. 999 is that of the official images.
            (Self::Image(_), Err(_)) => Ok(Some((999, 999))),
            (_, owner) => owner,
        }
    }

    /// The programs, with the container started that has them. It blocks.
    pub(super) fn programs(&self, at: &mut Workplace, major: u32) -> Result<ServerPrograms> {
        match self {
            Self::Here(bin) => Ok(ServerPrograms { bin: bin.clone(), owner: at.owner(), container: None }),
            Self::Image(image) => {
                at.start_container(image)?;
                let container = at.container.as_ref().map(|container| container.name().to_owned());
                let programs = ServerPrograms { bin: PathBuf::new(), owner: None, container };
                let version = programs.run("postgres", &["--version"]).unwrap_or_default();
                let words = version.split_once("(PostgreSQL)").map_or("", |(_, words)| words.trim());
                let has = match major_of(words) {
                    Some(has) if has == major => return Ok(programs),
                    Some(has) => format!("PostgreSQL {has}"),
                    None => "no server in its PATH".to_owned(),
                };
                let message = format!("the image {image} has {has}, and the backup is of {major}");
                Err(Error::new(ErrorKind::ToolMissing, message)
                    .with_hint("name another image with --image, or image in [drill]"))
            }
        }
    }
}
