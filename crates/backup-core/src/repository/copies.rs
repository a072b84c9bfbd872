//! One repository in several places.

use std::sync::Arc;

use super::Repository;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;

/// What a copy was found to be.
enum Found {
    Here(Repository),
    /// Nothing is there yet.
    Nothing(Arc<dyn Store>),
    Away(Error),
}

async fn look(store: &Arc<dyn Store>) -> Result<Vec<Found>> {
    let looks = store.copies().into_iter().map(|copy| async move {
        match Repository::open(Arc::clone(&copy)).await {
            Ok(repository) => Ok(Found::Here(repository)),
            Err(error) if error.kind() == ErrorKind::NotARepository => Ok(Found::Nothing(copy)),
            Err(error) if error.kind() == ErrorKind::NewerFormat => Err(error),
            Err(error) => {
                tracing::warn!(copy = copy.location(), %error, "a copy of the repository cannot be used");
                Ok(Found::Away(error))
            }
        }
    });
    futures::future::join_all(looks).await.into_iter().collect()
}

/// Those that are there, when they are one repository.
fn same(found: &[Found]) -> Result<Vec<Repository>> {
    let here: Vec<Repository> = found
        .iter()
        .filter_map(|found| match found {
            Found::Here(repository) => Some(repository.clone()),
            _ => None,
        })
        .collect();
    let Some(first) = here.first() else { return Ok(here) };
    if let Some(other) = here.iter().find(|other| other.id() != first.id()) {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "{} and {} are two repositories, and no copies of one: their ids are {} and {}",
                first.store().location(),
                other.store().location(),
                first.id(),
                other.id()
            ),
        )
        .with_hint(
            "a copy begins in an empty place; pgark copy brings backups from one repository to another",
        ));
    }
    Ok(here)
}

fn first_failure(found: Vec<Found>) -> Option<Error> {
    found.into_iter().find_map(|found| match found {
        Found::Away(error) => Some(error),
        _ => None,
    })
}

/// Opens a repository in the copies that answer.
pub(super) async fn open(store: Arc<dyn Store>) -> Result<Repository> {
    let found = look(&store).await?;
    let here = same(&found)?;
    if !here.is_empty() {
        return Repository::over(store, &here);
    }
    let missing = || {
        Error::new(ErrorKind::NotARepository, format!("there is no repository at {}", store.location()))
            .with_hint("check the URLs; pgark init makes one")
    };
    Err(first_failure(found).unwrap_or_else(missing))
}

/// Opens a repository in the copies that answer, or makes one. Where there is none at all, all places must answer: one that
/// does not may have a repository already, and there would be two. True where it is new. With `join` empty places become
/// copies of one that is there.
pub(super) async fn init(store: Arc<dyn Store>, join: bool) -> Result<(Repository, bool)> {
    let found = look(&store).await?;
    let mut here = same(&found)?;
    let new = here.is_empty();
    let mut empty = found.iter().filter_map(|found| match found {
        Found::Nothing(copy) => Some(Arc::clone(copy)),
        _ => None,
    });
    if new {
        if found.iter().any(|found| matches!(found, Found::Away(_))) {
            drop(empty);
            let error = first_failure(found).unwrap_or_else(|| Error::internal("no copy is away"));
            return Err(error.doing("making a new repository in several copies, for which all must answer"));
        }
        let first = empty.next().ok_or_else(|| Error::internal("a store without copies"))?;
        here.push(Repository::init(first).await?.0);
    }
    let id = here.first().map(|first| first.id().to_owned()).unwrap_or_default();
    for place in empty {
        let location = place.location().to_owned();
        if !new && !join {
            // It may be a folder whose file system is not mounted.
            tracing::warn!(
                copy = location,
                "the empty place is no copy yet, and is left out: pgark init makes it one"
            );
            continue;
        }
        match Repository::make(place, &id).await {
            Ok((copy, made)) => {
                if made && !new {
                    tracing::info!(copy = location, "the empty place is a copy now; pgark sync fills it in");
                }
                here.push(copy);
            }
            // It may be back later, and is no copy until then.
            Err(error) if error.kind() == ErrorKind::StoreUnavailable && !new => {
                tracing::warn!(copy = location, %error, "the empty place could not become a copy");
            }
            Err(error) => return Err(error),
        }
    }
    let made: Vec<_> = here.into_iter().map(Found::Here).collect();
    Ok((Repository::over(store, &same(&made)?)?, new))
}

impl Repository {
    /// Like [`Repository::init`]; where the repository is in some of several places already, and others are empty, these
    /// become copies. They have no backups before a [sync](crate::copies::sync()).
    pub async fn init_copies(store: Arc<dyn Store>) -> Result<(Self, bool)> {
        if store.copies().is_empty() { Self::init(store).await } else { init(store, true).await }
    }

    /// The copies that this repository is kept in and that can be used now, each by itself; none where it is in one
    /// place only.
    pub async fn copies(&self) -> Result<Vec<Self>> {
        if self.store().copies().is_empty() {
            return Ok(Vec::new());
        }
        same(&look(self.store()).await?)
    }
}
