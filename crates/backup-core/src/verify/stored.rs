//! The stored bytes of objects against their digests, several at once, and pieces of a large one at once: BLAKE3 is a
//! tree, and the halves of it can be computed apart (section 2.1 of its paper).

use std::ops::Range;
use std::sync::Arc;

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio_util::task::AbortOnDropHandle;

use super::{Finding, Report, VerifyOptions, note};
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::{StoredCheck, Totals, check_stored, taken};
use crate::repository::{BackupRecord, Digest, ObjectRecord, Repository, has_key, layout};
use crate::restore::Reading;
use crate::store::Store;

/// Length of a piece: a subtree of BLAKE3, so a power of two.
const PIECE: u64 = 32 * 1024 * 1024;

/// Compares the stored bytes of a backup.
pub(super) async fn verify_stored(
    repository: &Repository,
    record: &BackupRecord,
    options: &VerifyOptions,
    report: &mut Report,
) -> Result<()> {
    let folder = layout::backup(&record.cluster, &record.id);
    if let Some(encryption) = &record.encryption
        && !has_key(repository, record).await?
    {
        let what = format!("{folder}/{}", layout::key(&encryption.method));
        report.findings.push(Finding::of_object(&what, true, "without its key nobody can read the backup"));
    }
    let reading = Reading::new(None, options.jobs, options.pool.clone(), options.observer.clone())?;
    let totals = Totals::default();
    let mut objects: Vec<_> = record.parts.iter().flat_map(|part| &part.objects).cloned().collect();
    if let Some(sample) = &options.sample {
        objects = sample.choose(objects, |object| format!("{}/{}", record.id, object.key));
    }
    objects.extend(record.contents.clone());
    report.objects = objects.len() as u64;
    report.stored_bytes = objects.iter().map(|object| object.bytes).sum();
    let store = Arc::clone(repository.store());
    let mut checks = check_all(store, folder.clone(), objects, reading.jobs);
    while let Some(Checked { object, result }) = checks.next().await {
        totals.add(0, object.bytes, &*reading.observer);
        let key = format!("{folder}/{}", object.key);
        note(report, key.clone(), Some(key), result)?;
    }
    Ok(())
}

/// A piece of an object, or all of a small one.
struct Task {
    object: usize,
    range: Option<Range<u64>>,
}

/// What came of an object.
struct Checked {
    object: ObjectRecord,
    result: Result<()>,
}

/// Reads objects in `folder` through on `jobs` cores; their results in their order.
fn check_all(
    store: Arc<dyn Store>,
    folder: String,
    objects: Vec<ObjectRecord>,
    jobs: usize,
) -> BoxStream<'static, Checked> {
    let mut tasks = Vec::new();
    for (number, object) in objects.iter().enumerate() {
        if object.bytes <= 2 * PIECE || jobs == 1 {
            tasks.push(Task { object: number, range: None });
            continue;
        }
        let starts = (0..object.bytes.div_ceil(PIECE)).map(|n| n * PIECE);
        let ranges = starts.map(|start| start..(start + PIECE).min(object.bytes));
        tasks.extend(ranges.map(|range| Task { object: number, range: Some(range) }));
    }
    let all = Arc::new(objects);
    let of_tasks = Arc::clone(&all);
    let done = futures::stream::iter(tasks)
        .map(move |task| {
            let (store, folder, objects) = (Arc::clone(&store), folder.clone(), Arc::clone(&of_tasks));
            // A task of its own for each, so that they run on all cores.
            let work = tokio::spawn(async move {
                let object = &objects[task.object];
                let done = match task.range.clone() {
                    None => check_stored(&*store, &folder, object).await.map(|()| None),
                    Some(range) => piece(&*store, &folder, object, range).await.map(Some),
                };
                (task, done)
            });
            AbortOnDropHandle::new(work)
        })
        // One more than there are cores: while it waits for bytes the others are hashed.
        .buffered(if jobs > 1 { jobs + 1 } else { 1 });
    // The pieces of an object follow each other.
    futures::stream::unfold((done, Vec::new(), None), move |(mut done, mut values, mut failed)| {
        let all = Arc::clone(&all);
        async move {
            loop {
                let (task, result) = match done.next().await? {
                    Ok(done) => done,
                    Err(e) => (
                        Task { object: 0, range: None },
                        Err(Error::internal("reading an object failed").caused_by(e)),
                    ),
                };
                let object = all[task.object].clone();
                match result {
                    Ok(None) => return Some((Checked { object, result: Ok(()) }, (done, values, failed))),
                    Ok(Some(value)) => values.push(value),
                    Err(error) if task.range.is_none() => {
                        return Some((Checked { object, result: Err(error) }, (done, values, failed)));
                    }
                    Err(error) => failed = failed.or(Some(error)),
                }
                if task.range.is_some_and(|range| range.end == object.bytes) {
                    let result = match failed.take() {
                        Some(error) => Err(error),
                        None if root(&values, object.bytes) == object.blake3 => Ok(()),
                        None => Err(StoredCheck::other_bytes(&object.key)),
                    };
                    values.clear();
                    return Some((Checked { object, result }, (done, values, failed)));
                }
            }
        }
    })
    .boxed()
}

/// The value of a piece. With the first one the length of the object is compared.
async fn piece(
    store: &dyn Store,
    folder: &str,
    object: &ObjectRecord,
    range: Range<u64>,
) -> Result<ChainingValue> {
    let key = format!("{folder}/{}", object.key);
    if range.start == 0 {
        let found = store.head(&key).await?.bytes;
        if found != object.bytes {
            return Err(StoredCheck::other_length(&object.key, found, object.bytes));
        }
    }
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(range.start);
    let wanted = range.end - range.start;
    let through =
        taken(store, &key, Some(range), (hasher, 0), move |(hasher, read): &mut (_, u64), bytes| {
            *read += bytes.len() as u64;
            // More than a piece cannot be hashed as one.
            if *read <= wanted {
                blake3::Hasher::update(hasher, bytes);
            }
        });
    let (hasher, read) = through.await.map_err(|e| match e.kind() {
        // It is too short, which another piece says better.
        ErrorKind::Integrity => StoredCheck::other_bytes(&object.key),
        _ => e,
    })?;
    if read != wanted {
        return Err(StoredCheck::other_bytes(&object.key));
    }
    Ok(hasher.finalize_non_root())
}

/// The digest of an object of more than one piece.
fn root(values: &[ChainingValue], bytes: u64) -> Digest {
    let (left, right) = halves(values, bytes);
    let of = |(values, bytes): (&[ChainingValue], u64)| subtree(values, bytes);
    Digest::from(merge_subtrees_root(&of(left), &of(right), Mode::Hash))
}

fn subtree(values: &[ChainingValue], bytes: u64) -> ChainingValue {
    if let [only] = values {
        return *only;
    }
    let (left, right) = halves(values, bytes);
    merge_subtrees_non_root(&subtree(left.0, left.1), &subtree(right.0, right.1), Mode::Hash)
}

type Half<'a> = (&'a [ChainingValue], u64);

/// The left half is the largest power of two that leaves something for the right one.
fn halves(values: &[ChainingValue], bytes: u64) -> (Half<'_>, Half<'_>) {
    let left = left_subtree_len(bytes);
    let (first, second) = values.split_at(usize::try_from(left / PIECE).unwrap_or(0).min(values.len()));
    ((first, left), (second, bytes - left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_the_digest_of_the_whole() {
        for bytes in [2 * PIECE + 1, 3 * PIECE, 4 * PIECE, 5 * PIECE - 1, 5 * PIECE + 1024] {
            let data: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
            let values: Vec<ChainingValue> = data
                .chunks(usize::try_from(PIECE).unwrap())
                .enumerate()
                .map(|(n, piece)| {
                    let mut hasher = blake3::Hasher::new();
                    hasher.set_input_offset(n as u64 * PIECE).update(piece);
                    hasher.finalize_non_root()
                })
                .collect();
            assert_eq!(root(&values, bytes), Digest::of(&data), "{bytes}");
        }
    }
}
