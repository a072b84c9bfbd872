//! Several stores with equal objects, as one.
//!
//! Each copy by itself keeps the rules of a repository: what says that a backup exists is created in a copy only
//! where the copy took all that was written below the backup's folder. So a copy alone never shows a backup that it
//! does not have whole, whatever happened to the others.

mod copy;
mod missed;
mod upload;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backup_core::{Bytestream, Created, Entry, Error, ErrorKind, Kept, Meta, Missed, Result, Store, Upload};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

use copy::Copy;
use missed::Misses;

/// A store that writes to several at once and reads from any of them.
#[derive(Debug, Clone)]
pub struct Replicas(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    copies: Vec<Arc<Copy>>,
    min: usize,
    location: String,
    misses: Misses,
}

impl Replicas {
    /// Keeps `stores` equal. A write succeeds when `min` of them have it: by default all but one.
    ///
    /// # Errors
    /// [`Usage`](ErrorKind::Usage) for fewer than two stores, the same one twice, or a `min` that cannot be.
    pub fn new(stores: Vec<Arc<dyn Store>>, min: Option<usize>) -> Result<Self> {
        let wrong = |why: String| Err(Error::new(ErrorKind::Usage, why));
        let count = stores.len();
        if count < 2 {
            return wrong("copies are at least two".to_owned());
        }
        let min = min.unwrap_or(count - 1);
        if !(1..=count).contains(&min) {
            return wrong(format!("min_copies is from 1 to {count}, the number of copies, not {min}"));
        }
        let locations: Vec<String> = stores.iter().map(|s| s.location().to_owned()).collect();
        if let Some(twice) = locations.iter().enumerate().find(|(i, l)| locations[..*i].contains(l)) {
            return wrong(format!("{} is given twice", twice.1));
        }
        let copies = stores.into_iter().map(|store| Arc::new(Copy::new(store))).collect();
        let location = locations.join(" + ");
        Ok(Self(Arc::new(Inner { copies, min, location, misses: Misses::default() })))
    }

    /// How long a copy that failed is left alone before it is tried again; 30 seconds, and twice as long each further time.
    #[must_use]
    pub fn pause(self, pause: Duration) -> Self {
        self.0.copies.iter().for_each(|copy| copy.set_pause(pause));
        self
    }

    /// How long a copy may take for a call that moves no more than a chunk; 2 minutes.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        self.0.copies.iter().for_each(|copy| copy.set_patience(patience));
        self
    }
}

impl Inner {
    /// What fewer copies than wanted are, after a write.
    fn too_few(&self, key: &str, done: usize, first: Option<Error>) -> Error {
        let kind = first.as_ref().map_or(ErrorKind::StoreUnavailable, Error::kind);
        if done == 0
            && let Some(first) = first
        {
            return first;
        }
        let message =
            format!("only {done} of {} copies took {key}, and {} must", self.copies.len(), self.min);
        let error = Error::new(kind, message).retryable_if(false).with_hint(
            "bring the missing copy back, or set min_copies to what may be enough; pgark sync fills in what a copy lacks",
        );
        match first {
            Some(first) => error.caused_by(first),
            None => error,
        }
    }

    /// Creates `key` in copies. What the first says that answers counts, and it is asked before the others.
    async fn create_in(&self, copies: &[usize], key: &str, body: &Bytes) -> Result<Created> {
        let mut tally = Tally::default();
        let mut rest = copies;
        // The server waits for its WAL, and names of WAL say what is in it: no two can differ.
        while !is_wal(key)
            && tally.decided.is_none()
            && let Some((first, others)) = rest.split_first()
        {
            rest = others;
            self.count(&mut tally, key, *first, self.copies[*first].create(key, body.clone()).await);
            if tally.decided == Some(Created::Other) {
                return Ok(Created::Other);
            }
        }
        let others = rest.iter().map(|copy| self.copies[*copy].create(key, body.clone()));
        for (copy, created) in rest.iter().zip(futures::future::join_all(others).await) {
            self.count(&mut tally, key, *copy, created);
        }
        match tally {
            Tally { decided: Some(Created::Other), .. } => Ok(Created::Other),
            Tally { decided: Some(decided), done, .. } if done >= self.min => Ok(decided),
            Tally { done, failed, .. } => Err(self.too_few(key, done, failed)),
        }
    }

    fn count(&self, tally: &mut Tally, key: &str, copy: usize, created: Result<Created>) {
        match created {
            Ok(Created::Other) if tally.decided.is_some() => {
                let error = Error::new(ErrorKind::Conflict, format!("{key} is there with other bytes"));
                self.misses.differs(copy, key, &error);
                tally.failed.get_or_insert(error);
            }
            Ok(created) => {
                tally.done += usize::from(created != Created::Other);
                tally.decided.get_or_insert(created);
            }
            Err(error) => {
                self.misses.note(copy, key, &error);
                tally.failed.get_or_insert(error);
            }
        }
    }

    /// The copies in the order in which they are asked: those that answered lately come first.
    fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.copies.len()).collect();
        order.sort_by_key(|copy| self.copies[*copy].is_away());
        order
    }

    async fn list(&self, folder: &str, after: Option<&str>, certain: bool) -> Result<Vec<Entry>> {
        let lists = self
            .copies
            .iter()
            .map(|copy| async move { copy.list(folder, after).try_collect::<Vec<Entry>>().await });
        let (mut found, mut failed, mut answers) = (BTreeMap::new(), None, 0);
        for listed in futures::future::join_all(lists).await {
            match listed {
                Ok(entries) => {
                    answers += 1;
                    for entry in entries {
                        found.entry(entry.name().to_owned()).or_insert(entry);
                    }
                }
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        // What was written is in `min` copies at least: so many may be away that one of those still answers.
        let enough = if certain { self.copies.len() - self.min + 1 } else { 1 };
        match failed {
            Some(error) if answers < enough => Err(if certain && answers > 0 {
                Error::new(
                    ErrorKind::StoreUnavailable,
                    format!("a copy did not answer, and nobody knows what only it has in {folder}"),
                )
                .with_hint("to do with the copies that answer, name them alone with --repo")
                .caused_by(error)
            } else {
                error
            }),
            _ => Ok(found.into_values().collect()),
        }
    }
}

/// What copies said to a create.
#[derive(Default)]
struct Tally {
    decided: Option<Created>,
    done: usize,
    failed: Option<Error>,
}

/// Whether a key is that of WAL.
fn is_wal(key: &str) -> bool {
    key.split('/').nth(2) == Some("wal")
}

fn stream_of(
    listed: impl Future<Output = Result<Vec<Entry>>> + Send + 'static,
) -> BoxStream<'static, Result<Entry>> {
    futures::stream::once(listed)
        .map_ok(|found| futures::stream::iter(found.into_iter().map(Ok)))
        .try_flatten()
        .boxed()
}

/// What several failures of a read say together: that an object is missing only where all copies say so.
fn read_failure(errors: Vec<Error>) -> Error {
    let mut errors = errors.into_iter();
    let Some(mut worst) = errors.next() else { return Error::internal("a store without copies") };
    for error in errors {
        if worst.kind() == ErrorKind::ObjectMissing {
            worst = error;
        }
    }
    worst
}

#[async_trait]
impl Store for Replicas {
    fn location(&self) -> &str {
        &self.0.location
    }

    fn upload_chunks(&self) -> usize {
        // A chunk is shared by the copies, which get it at the same time.
        self.0.copies.iter().map(|copy| copy.upload_chunks()).max().unwrap_or(1)
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created> {
        let all: Vec<usize> = (0..self.0.copies.len()).collect();
        self.0.create_in(&all, key, &body).await
    }

    async fn commit(&self, key: &str, body: Bytes) -> Result<Created> {
        let whole: Vec<usize> =
            (0..self.0.copies.len()).filter(|copy| !self.0.misses.has_missed(*copy, key)).collect();
        if whole.len() < self.0.min {
            // Nothing says yet that anything is there, and nothing shall.
            let why = self.0.misses.of(key).into_iter().next().map(|(_, why)| why).unwrap_or_default();
            let error = Error::new(ErrorKind::StoreUnavailable, why);
            return Err(self.0.too_few(key, whole.len(), Some(error)));
        }
        self.0.create_in(&whole, key, &body).await
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>> {
        upload::start(Arc::clone(&self.0), key).await
    }

    async fn read(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytestream> {
        let mut errors = Vec::new();
        let order = self.0.order();
        for (tried, copy) in order.iter().enumerate() {
            match self.0.copies[*copy].read(key, range.clone()).await {
                Ok(stream) => {
                    let others = order[tried + 1..].to_vec();
                    return Ok(copy::going_on(self.0.copies.clone(), others, key, range, stream));
                }
                Err(error) => errors.push(error),
            }
        }
        Err(read_failure(errors))
    }

    async fn head(&self, key: &str) -> Result<Meta> {
        let mut errors = Vec::new();
        for copy in self.0.order() {
            match self.0.copies[copy].head(key).await {
                Ok(meta) => return Ok(meta),
                Err(error) => errors.push(error),
            }
        }
        Err(read_failure(errors))
    }

    fn list(&self, folder: &str, after: Option<&str>) -> BoxStream<'static, Result<Entry>> {
        let (inner, folder, after) = (Arc::clone(&self.0), folder.to_owned(), after.map(str::to_owned));
        stream_of(async move { inner.list(&folder, after.as_deref(), false).await })
    }

    fn list_certain(&self, folder: &str, after: Option<&str>) -> BoxStream<'static, Result<Entry>> {
        let (inner, folder, after) = (Arc::clone(&self.0), folder.to_owned(), after.map(str::to_owned));
        stream_of(async move { inner.list(&folder, after.as_deref(), true).await })
    }

    async fn delete(&self, keys: &[String]) -> Vec<Result<()>> {
        let inner = &self.0;
        let deletes = inner.copies.iter().enumerate().map(|(copy, store)| async move {
            // A copy that did not hear that a run was given up, or that its record is gone, keeps all of it.
            let (mut may, mut skipped) = (Vec::new(), Vec::new());
            for (at, key) in keys.iter().enumerate() {
                match inner.misses.keeps(copy, key) {
                    Some(why) => skipped.push((at, why)),
                    None => may.push((at, key.clone())),
                }
            }
            let (places, may): (Vec<usize>, Vec<String>) = may.into_iter().unzip();
            let deleted = store.delete(&may).await;
            let mut results: Vec<(usize, Result<()>)> = places.into_iter().zip(deleted).collect();
            for (at, result) in &results {
                if let Err(error) = result {
                    inner.misses.differs(copy, &keys[*at], error);
                }
            }
            results.extend(skipped.into_iter().map(|(at, why)| {
                (at, Err(Error::new(ErrorKind::StoreUnavailable, why).retryable_if(false)))
            }));
            results
        });
        let mut answers: Vec<Result<()>> = keys.iter().map(|_| Ok(())).collect();
        for results in futures::future::join_all(deletes).await {
            for (at, result) in results {
                if let (Err(error), Ok(())) = (result, &answers[at]) {
                    answers[at] = Err(error);
                }
            }
        }
        answers
    }

    fn copies(&self) -> Vec<Arc<dyn Store>> {
        self.0.copies.iter().map(|copy| Arc::clone(copy) as Arc<dyn Store>).collect()
    }

    fn expect_repository(&self, id: &str) {
        self.0.copies.iter().for_each(|copy| copy.expect(id));
    }

    fn kept(&self, folder: &str) -> Option<Kept> {
        let missing: Vec<Missed> = (self.0.misses.below(folder).into_iter())
            .map(|(copy, why)| Missed { copy: self.0.copies[copy].location().to_owned(), why })
            .collect();
        let copies = self.0.copies.len();
        Some(Kept { copies, whole: copies - missing.len(), missing })
    }

    async fn free_bytes(&self) -> Result<Option<u64>> {
        let asked = futures::future::join_all(self.0.copies.iter().map(|copy| copy.free_bytes())).await;
        // What does not answer now is told by those who write to it.
        Ok(asked.into_iter().filter_map(|free| free.ok().flatten()).min())
    }

    async fn sweep_temporaries(&self, age: Duration) -> Result<u64> {
        let swept = self.0.copies.iter().map(|copy| copy.sweep_temporaries(age));
        let mut removed = 0;
        for swept in futures::future::join_all(swept).await {
            match swept {
                Ok(count) => removed += count,
                Err(error) => tracing::info!(%error, "temporaries of a copy stay"),
            }
        }
        Ok(removed)
    }
}
