//! Prunes of whole repositories: interrupted at any request, with locked objects, with runs that come meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::executor::block_on;
use jiff::{SignedDuration, Timestamp};
use pgark::repository::{Catalog, ClusterName};
use pgark::retention::{Prune, PrunePlan, Pruned, Rules, pin, unpin};
use pgark::wal::{Archive, Survey};
use pgark::{
    CancellationToken, Error, ErrorKind, Event, Got, MemoryTransport, Meta, Page, Remote, Repository, Result,
    RetryPolicy, Transport,
};

use crate::support::counting::Counting;
use crate::support::shelf::{Fake, SEGMENT, SYSTEM, mark, segment, shelf};

/// Requests fail from a number on, as those of a killed process do; and some objects cannot be deleted.
#[derive(Debug, Clone)]
struct Fragile {
    inner: MemoryTransport,
    left: Arc<AtomicUsize>,
    locked: &'static str,
}

impl Fragile {
    fn new(inner: &MemoryTransport) -> Self {
        Self { inner: inner.clone(), left: Arc::new(AtomicUsize::new(usize::MAX)), locked: "nothing" }
    }

    fn go(&self) -> Result<&MemoryTransport> {
        let take = |left: usize| left.checked_sub(1);
        match self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) {
            Ok(_) => Ok(&self.inner),
            Err(_) => Err(Error::new(ErrorKind::Internal, "killed")),
        }
    }
}

#[async_trait]
impl Transport for Fragile {
    async fn create(&self, key: &str, body: Bytes) -> Result<()> {
        self.go()?.create(key, body).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.go()?.put(key, body).await
    }

    async fn get(&self, key: &str, start: u64, end: Option<u64>) -> Result<Got> {
        self.go()?.get(key, start, end).await
    }

    async fn head(&self, key: &str) -> Result<Meta> {
        self.go()?.head(key).await
    }

    async fn list(&self, folder: &str, after: Option<&str>, token: Option<String>) -> Result<Page> {
        self.go()?.list(folder, after, token).await
    }

    async fn walk(&self, folder: &str, token: Option<String>) -> Result<Option<Page>> {
        self.go()?.walk(folder, token).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        if key.contains(self.locked) {
            return Err(Error::new(ErrorKind::StoreDenied, "the object is locked"));
        }
        self.go()?.delete(key).await
    }

    async fn start(&self, key: &str) -> Result<String> {
        self.go()?.start(key).await
    }

    async fn put_part(&self, key: &str, upload: &str, index: usize, body: Bytes) -> Result<String> {
        self.go()?.put_part(key, upload, index, body).await
    }

    async fn complete(&self, key: &str, upload: &str, tags: Vec<String>) -> Result<()> {
        self.go()?.complete(key, upload, tags).await
    }

    async fn abort(&self, key: &str, upload: &str) -> Result<()> {
        self.go()?.abort(key, upload).await
    }
}

fn put(memory: &MemoryTransport, key: &str, body: Vec<u8>) {
    block_on(memory.put(key, body.into())).unwrap();
}

fn memory<'a>(fakes: impl IntoIterator<Item = &'a Fake>) -> MemoryTransport {
    let memory = MemoryTransport::new();
    for (key, body) in shelf(fakes) {
        put(&memory, &key, body);
    }
    memory
}

async fn open(transport: impl Transport) -> Repository {
    let mut policy = RetryPolicy::default();
    policy.retries = 0;
    Repository::open(Arc::new(Remote::new(transport, "memory", policy))).await.unwrap()
}

fn last(count: usize) -> Rules {
    let mut rules = Rules::default();
    rules.last = Some(count);
    rules
}

async fn prune(transport: impl Transport, rules: Rules) -> Prune {
    let cluster = ClusterName::default();
    let prune = Prune::new(open(transport).await, cluster, rules).unwrap();
    prune.wait(Duration::ZERO).allow_more(true)
}

async fn apply(transport: impl Transport, rules: Rules) -> Result<(PrunePlan, Pruned)> {
    prune(transport, rules).await.apply(&CancellationToken::new()).await
}

fn days_ago(days: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_hours(24 * days)
}

/// The ids of the backups that there are, and of those that something of is there.
async fn there(memory: &MemoryTransport) -> (BTreeSet<String>, BTreeSet<String>) {
    let catalog = Catalog::load(&open(memory.clone()).await, &ClusterName::default()).await.unwrap();
    let folder = |key: &String| {
        key.strip_prefix("clusters/main/backups/").and_then(|rest| rest.split('/').next()).map(str::to_owned)
    };
    let folders = memory.keys().iter().filter_map(folder).collect();
    (catalog.backups().map(|backup| backup.id.to_string()).collect(), folders)
}

fn ids<'a>(fakes: impl IntoIterator<Item = &'a Fake>) -> BTreeSet<String> {
    fakes.into_iter().map(Fake::id).collect()
}

fn wal_numbers(memory: &MemoryTransport) -> Vec<u64> {
    let number = |key: &String| {
        let file = key.strip_prefix(&format!("clusters/main/wal/{SYSTEM}/"))?.split('/').nth(2)?.to_owned();
        u64::from_str_radix(&file[16..24], 16).ok()
    };
    memory.keys().iter().filter_map(number).collect()
}

/// Full backups, an increment of each, and the WAL of all of it. The first left its WAL to the archive.
fn weeks() -> Vec<Fake> {
    let mut fakes = Vec::new();
    for week in 0..4_u64 {
        let n = usize::try_from(week).unwrap();
        let at = days_ago(28 - 7 * i64::try_from(week).unwrap());
        let full = Fake::physical(at, 10 * week + 2, 10 * week + 3, 2 * n);
        let full = if week == 0 { full.with("wal", "archive") } else { full };
        let next = at + SignedDuration::from_hours(48);
        fakes.push(Fake::physical(next, 10 * week + 6, 10 * week + 6, 2 * n + 1).on(&full));
        fakes.push(full);
    }
    fakes.sort_by_key(|fake| fake.at);
    fakes
}

fn with_wal(memory: &MemoryTransport, to: u64) {
    for number in 0..to {
        put(memory, &segment(1, number), vec![0; 8]);
    }
}

/// Keys of WAL: of what goes, of what stays, of nothing.
const OLD: &str = "01M7YBC43R60RYQ0FH5E5ZT001";
const USED: &str = "01M7YBC43R60RYQ0FH5E5ZT002";
const NEVER: &str = "01M7YBC43R60RYQ0FH5E5ZT003";
const YOUNG: &str = "01M7YBC43R60RYQ0FH5E5ZT004";

fn sealed(key: &str, with: &str) -> String {
    key.replace(".zst", &format!("-{with}.zst.age"))
}

/// Sealed WAL of three timelines, 40 segments in all, with histories, restore points and keys.
fn with_companions(memory: &MemoryTransport) {
    let root = format!("clusters/main/wal/{SYSTEM}");
    let digest = "0123456789abcdef0123456789abcdef";
    for number in 0..40 {
        let timeline = if number < 20 { 1 } else { 2 + u32::from(number >= 30) };
        let with = if number < 32 { OLD } else { USED };
        put(memory, &sealed(&segment(timeline, number), with), vec![0; 8]);
        if number % 30 == 5 {
            let place = format!("{root}/points/{timeline:08X}-{:016X}", number * SEGMENT + 100);
            let name = format!("00000000-00000040-00000000-{digest}-{digest}-0-0.zst");
            put(memory, &format!("{place}/{}", sealed(&name, with)), vec![0; 8]);
        }
    }
    for timeline in 2..4 {
        put(memory, &format!("{root}/history/{timeline:08X}-{digest}.history"), b"a history".to_vec());
    }
    for key in [OLD, USED, NEVER] {
        put(memory, &format!("clusters/main/wal/keys/{key}.age"), vec![0; 8]);
    }
    memory.age(Duration::from_hours(31 * 24));
    put(memory, &format!("clusters/main/wal/keys/{YOUNG}.age"), vec![0; 8]);
}

/// What is there beside segments: the beginnings of the names of histories and restore points, and the ids of keys.
fn companions(memory: &MemoryTransport) -> Vec<String> {
    let of = |key: &String| {
        let (folder, rest) = ["history", "points", "keys"]
            .iter()
            .find_map(|folder| Some((folder, key.split_once(&format!("/{folder}/"))?.1)))?;
        Some(format!("{folder} {}", &rest[..if *folder == "keys" { 26 } else { 8 }]))
    };
    memory.keys().iter().filter_map(of).collect()
}

/// As `weeks`, of three timelines.
fn weeks_of_timelines() -> Vec<Fake> {
    let of = [1, 1, 1, 1, 2, 2, 3, 3];
    weeks().into_iter().zip(of).map(|(fake, timeline)| fake.with("timeline", timeline)).collect()
}

#[tokio::test]
async fn what_belongs_to_wal_goes_with_it() {
    let fakes = weeks_of_timelines();
    let template = || {
        let memory = memory(&fakes);
        with_companions(&memory);
        memory
    };
    let stays = |names: &[&str]| -> Vec<String> { names.iter().map(ToString::to_string).collect() };
    let all = template();
    let (plan, done) = apply(all.clone(), last(2)).await.unwrap();
    assert_eq!((plan.wal_keys, plan.wal[0].others, plan.remove.wal_others), (2, 2, 4), "{plan:?}");
    assert_eq!((plan.remove.wal_segments, done.wal_objects), (32, 36));
    let expected = [&format!("keys {USED}"), &format!("keys {YOUNG}"), "history 00000003", "points 00000003"];
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    assert_eq!(sorted(companions(&all)), sorted(stays(&expected)));
    assert!(prune(all.clone(), last(2)).await.plan().await.unwrap().is_nothing());

    // A run at work may be of any timeline.
    let memory = template();
    let run = Fake::physical(fakes[7].at + SignedDuration::from_hours(3), 0, 0, 99);
    let (key, body) = run.announcement();
    put(&memory, &key, body);
    apply(memory.clone(), last(2)).await.unwrap();
    assert!(companions(&memory).contains(&"history 00000002".to_owned()));

    // A segment that the store does not let go can still be read, along its timeline.
    let memory = template();
    let mut fragile = Fragile::new(&memory);
    fragile.locked = "/000000020000000000000015-";
    let (_, done) = apply(fragile, last(2)).await.unwrap();
    assert_eq!((done.left.len(), done.wal_objects), (1, 33), "{done:?}");
    let there = companions(&memory);
    assert!(
        there.contains(&"history 00000002".to_owned()) && there.contains(&format!("keys {OLD}")),
        "{there:?}"
    );
    let (plan, _) = apply(memory.clone(), last(2)).await.unwrap();
    assert_eq!((plan.remove.wal_segments, plan.remove.wal_others), (1, 2));
    assert_eq!(sorted(companions(&memory)), sorted(stays(&expected)));

    // Everything stays while no backup of the cluster is there.
    let none = self::memory([]);
    with_companions(&none);
    let before = none.keys().len();
    let plan = prune(none.clone(), last(2)).await.plan().await.unwrap();
    assert!(plan.is_nothing() && none.keys().len() == before, "{plan:?}");
}

#[tokio::test]
async fn backups_and_their_wal_go() {
    let fakes = weeks();
    let memory = memory(&fakes);
    with_wal(&memory, 45);
    let planned = prune(memory.clone(), last(2)).await.plan().await.unwrap();
    assert_eq!(memory.keys().len(), 45 + 3 * 8 + 2, "a plan changes nothing");
    let (plan, done) = apply(memory.clone(), last(2)).await.unwrap();
    assert_eq!((plan.remove, plan.backups), (planned.remove, planned.backups));
    assert_eq!(there(&memory).await, (ids(&fakes[6..]), ids(&fakes[6..])));
    assert_eq!((done.removed.len(), done.wal_objects, plan.remove.wal_segments), (6, 32, 32));
    assert_eq!(wal_numbers(&memory), (32..45).collect::<Vec<_>>(), "from the oldest kept backup on");
    let survey = Archive::of(&open(memory.clone()).await, &ClusterName::default(), SYSTEM, None);
    let survey = Survey::load(&survey).await.unwrap();
    assert_eq!((survey.segments(), survey.runs(1).len()), (13, 1));
    let (plan, done) = apply(memory.clone(), last(2)).await.unwrap();
    assert!(plan.is_nothing() && done == Pruned::default(), "twice is once: {plan:?}");
    assert!(memory.keys().iter().any(|key| key.contains("/marks/")), "marks stay for a day");
    memory.age(Duration::from_hours(25));
    apply(memory.clone(), last(2)).await.unwrap();
    assert!(!memory.keys().iter().any(|key| key.contains("/marks/")), "and not longer");
}

#[tokio::test]
async fn wal_stays_from_the_recovery_window_on_and_apart_for_what_is_older() {
    let fakes = weeks();
    let memory = memory(&fakes);
    with_wal(&memory, 45);
    let repository = open(memory.clone()).await;
    let cluster = ClusterName::default();
    let pinned = pin(&repository, &cluster, &fakes[0].id(), None).await.unwrap();
    assert!(pinned.pinned && !pinned.being_removed);
    let mut rules = Rules::default();
    rules.recovery_window = Some("6d".parse().unwrap());
    let (plan, _) = apply(memory.clone(), rules.clone()).await.unwrap();
    // The window begins with the full backup of the last week. The pinned one left segments 2 and 3 to the archive.
    assert_eq!(there(&memory).await.0, ids([&fakes[0], &fakes[6], &fakes[7]]));
    assert_eq!(wal_numbers(&memory), [2, 3].into_iter().chain(32..45).collect::<Vec<_>>());
    assert!(plan.wal[0].why.contains(&fakes[6].id()), "{plan:?}");
    unpin(&repository, &cluster, &fakes[0].id()).await.unwrap();
    apply(memory.clone(), rules).await.unwrap();
    assert_eq!(there(&memory).await.0, ids(&fakes[6..]));
    assert_eq!(wal_numbers(&memory), (32..45).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_run_at_work_keeps_its_parent_and_its_wal() {
    let fakes = weeks();
    let memory = memory(&fakes);
    with_wal(&memory, 45);
    // It began when the backup of the second week had ended, long before the last one did.
    let run = Fake::physical(fakes[4].at + SignedDuration::from_hours(3), 0, 0, 99).on(&fakes[2]);
    let (key, body) = run.announcement();
    put(&memory, &key, body);
    apply(memory.clone(), last(1)).await.unwrap();
    assert_eq!(there(&memory).await.0, ids([&fakes[2], &fakes[6], &fakes[7]]));
    let first = wal_numbers(&memory)[0];
    assert!(first <= 12, "the run may need what is behind the backups that ended before it: {first}");
}

#[tokio::test]
async fn what_comes_while_it_waits_saves_a_backup() {
    for what in ["a run", "a pin", "an increment"] {
        let fakes = weeks();
        let memory = memory(&fakes);
        with_wal(&memory, 45);
        let (parent, into) = (fakes[2].clone(), memory.clone());
        let come = move |event: &Event| {
            if !matches!(event, Event::Step { what } if what == "looking again") {
                return;
            }
            assert!(
                into.keys().iter().filter(|key| key.ends_with(".remove.json")).count() >= 6,
                "marked first"
            );
            let child = Fake::physical(Timestamp::now(), 40, 41, 99).on(&parent);
            match what {
                "a run" => {
                    let (key, body) = child.announcement();
                    put(&into, &key, body);
                }
                "a pin" => {
                    let (key, body) = mark(&parent.id(), "pin");
                    put(&into, &key, body);
                }
                _ => child.objects().into_iter().for_each(|(key, body)| put(&into, &key, body)),
            }
        };
        let pruned = prune(memory.clone(), last(1)).await.observer(Arc::new(come));
        let (_, done) = pruned.apply(&CancellationToken::new()).await.unwrap();
        assert!(done.saved.iter().any(|id| id.as_str() == fakes[2].id()), "{what}: {done:?}");
        let (backups, folders) = there(&memory).await;
        assert!(backups.contains(&fakes[2].id()) && folders.contains(&fakes[2].id()), "{what}");
        assert_eq!(folders.len(), if what == "a pin" { 3 } else { 4 }, "the others went: {folders:?}");
        assert!(wal_numbers(&memory)[0] <= 12, "{what}: its WAL stays");
        let catalog = Catalog::load(&open(memory.clone()).await, &ClusterName::default()).await.unwrap();
        assert!(catalog.backups().all(|backup| !catalog.is_being_removed(&backup.id)), "{what}");
    }
}

#[tokio::test]
async fn a_prune_that_dies_at_any_request_is_ended_by_the_next() {
    let fakes = weeks_of_timelines();
    let template = || {
        let memory = memory(&fakes);
        with_companions(&memory);
        memory
    };
    let data = |memory: &MemoryTransport| -> Vec<String> {
        let beside = ["/marks/", "/audit/", "/index/"];
        memory.keys().into_iter().filter(|key| !beside.iter().any(|folder| key.contains(folder))).collect()
    };
    let whole = template();
    let fragile = Fragile::new(&whole);
    apply(fragile.clone(), last(2)).await.unwrap();
    let requests = usize::MAX - fragile.left.load(Ordering::SeqCst);
    let expected = data(&whole);
    assert_eq!(companions(&whole).len(), 4);
    assert!(requests > 60, "{requests}");
    for killed_at in 1..requests {
        let memory = template();
        let fragile = Fragile::new(&memory);
        let prune = prune(fragile.clone(), last(2)).await;
        fragile.left.store(killed_at, Ordering::SeqCst);
        // What it could not do it says, or it fails.
        let _ = prune.apply(&CancellationToken::new()).await;
        let (backups, _) = there(&memory).await;
        assert!(ids(&fakes[6..]).is_subset(&backups), "killed at {killed_at}");
        let catalog = Catalog::load(&open(memory.clone()).await, &ClusterName::default()).await.unwrap();
        assert_eq!(catalog.find("latest").unwrap().id.as_str(), fakes[7].id());
        for backup in catalog.backups().filter(|backup| !catalog.is_being_removed(&backup.id)) {
            let fake = fakes.iter().find(|fake| fake.id() == backup.id.as_str()).unwrap();
            let objects: Vec<String> = fake.objects().into_iter().map(|(key, _)| key).collect();
            let keys = memory.keys();
            assert!(
                objects.iter().all(|key| keys.contains(key)),
                "{} looks whole, killed at {killed_at}",
                backup.id
            );
        }
        apply(memory.clone(), last(2)).await.unwrap();
        assert_eq!(data(&memory), expected, "killed at {killed_at}");
        let (plan, _) = apply(memory.clone(), last(2)).await.unwrap();
        assert!(plan.is_nothing(), "killed at {killed_at}: {plan:?}");
    }
}

#[tokio::test]
async fn rules_that_changed_take_marks_back() {
    let fakes = weeks();
    let memory = memory(&fakes);
    for fake in &fakes[..6] {
        let (key, body) = mark(&fake.id(), "remove");
        put(&memory, &key, body);
    }
    let (plan, done) = apply(memory.clone(), last(8)).await.unwrap();
    assert!(plan.is_nothing() && done.saved.len() == 6, "{done:?}");
    let catalog = Catalog::load(&open(memory.clone()).await, &ClusterName::default()).await.unwrap();
    assert!(catalog.backups().all(|backup| !catalog.is_being_removed(&backup.id)));
}

#[tokio::test]
async fn locked_objects_are_told_and_left() {
    // The record of an increment: it stays, and so does all that it builds on.
    let fakes = weeks();
    let memory = memory(&fakes);
    let mut fragile = Fragile::new(&memory);
    let locked = format!("{}/backup.json", fakes[1].id());
    fragile.locked = locked.leak();
    let (_, done) = apply(fragile, last(2)).await.unwrap();
    assert_eq!(done.left.len(), 1, "{done:?}");
    assert!(done.left[0].object.contains(&fakes[1].id()) && done.left[0].why.contains("locked"), "{done:?}");
    assert_eq!(there(&memory).await.1, ids(fakes[..2].iter().chain(&fakes[6..])));
    let catalog = Catalog::load(&open(memory.clone()).await, &ClusterName::default()).await.unwrap();
    assert!(catalog.is_being_removed(&fakes[1].id().parse().unwrap()), "it is shown as such");
    let (_, done) = apply(memory.clone(), last(2)).await.unwrap();
    assert_eq!(
        (done.removed.len(), there(&memory).await.1),
        (2, ids(&fakes[6..])),
        "once they are free they go"
    );

    // A part: the record is gone, so nothing looks like a backup.
    let memory = self::memory(&fakes);
    let mut fragile = Fragile::new(&memory);
    fragile.locked = ".pgdump.";
    let (_, done) = apply(fragile, last(2)).await.unwrap();
    assert_eq!((done.left.len(), there(&memory).await.0), (6, ids(&fakes[6..])), "{done:?}");
    let (plan, done) = apply(memory.clone(), last(2)).await.unwrap();
    assert_eq!(done.left, [], "{done:?} {:?}", memory.keys());
    assert_eq!((plan.interrupted.len(), there(&memory).await.1), (6, ids(&fakes[6..])));
}

/// Its clock is a day ahead.
#[derive(Debug)]
struct Ahead(Fragile);
#[async_trait]
impl Transport for Ahead {
    async fn create(&self, key: &str, body: Bytes) -> Result<()> {
        self.0.create(key, body).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.0.put(key, body).await
    }

    async fn get(&self, key: &str, start: u64, end: Option<u64>) -> Result<Got> {
        self.0.get(key, start, end).await
    }

    async fn head(&self, key: &str) -> Result<Meta> {
        let meta = self.0.head(key).await?;
        Ok(Meta { modified: meta.modified + SignedDuration::from_hours(24), ..meta })
    }

    async fn list(&self, folder: &str, after: Option<&str>, token: Option<String>) -> Result<Page> {
        self.0.list(folder, after, token).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.0.delete(key).await
    }

    async fn start(&self, key: &str) -> Result<String> {
        self.0.start(key).await
    }

    async fn put_part(&self, key: &str, upload: &str, index: usize, body: Bytes) -> Result<String> {
        self.0.put_part(key, upload, index, body).await
    }

    async fn complete(&self, key: &str, upload: &str, tags: Vec<String>) -> Result<()> {
        self.0.complete(key, upload, tags).await
    }

    async fn abort(&self, key: &str, upload: &str) -> Result<()> {
        self.0.abort(key, upload).await
    }
}

#[tokio::test]
async fn too_much_at_once_and_a_wrong_clock_are_refused() {
    let fakes = weeks();
    let memory = memory(&fakes);
    let keys = memory.keys();
    let of = async |share: u8| {
        let prune = prune(memory.clone(), last(2)).await.allow_more(false).max_share(share);
        prune.apply(&CancellationToken::new()).await
    };
    let error = of(74).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Usage && error.to_string().contains("6 of 8"), "{error:?}");
    assert!(keys.iter().all(|key| memory.keys().contains(key)), "nothing went");
    of(75).await.unwrap();

    let memory = self::memory(&fakes);
    let error = apply(Ahead(Fragile::new(&memory)), last(2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ClockSkew, "{error:?}");
    assert_eq!(there(&memory).await.0.len(), 8);
}

/// Requests of a list, a plan and a survey, of so many backups and segments, the index being up to date.
async fn requests(backups: usize, segments: u64) -> [usize; 3] {
    let begin = days_ago(30);
    let steps = i32::try_from(backups).unwrap();
    let step = SignedDuration::from_hours(24 * 20) / steps;
    let fakes: Vec<Fake> = (0..steps)
        .map(|n| {
            let number = segments * u64::try_from(n).unwrap() / backups as u64;
            Fake::physical(begin + step * n, number, number, usize::try_from(n).unwrap())
        })
        .collect();
    let memory = memory(&fakes);
    with_wal(&memory, segments);
    let cluster = ClusterName::default();
    // The index.
    apply(memory.clone(), last(backups)).await.unwrap();
    let counting = Counting::new(memory.clone());
    let repository = open(counting.clone()).await;
    counting.take();
    let catalog = Catalog::load(&repository, &cluster).await.unwrap();
    assert_eq!(catalog.backups().len(), backups);
    let list = counting.take();
    let mut rules = Rules::default();
    rules.daily = Some(7);
    let plan = Prune::new(repository.clone(), cluster.clone(), rules).unwrap().plan().await.unwrap();
    assert!(
        plan.remove.backups > backups / 2 && plan.remove.wal_segments > segments / 2,
        "{:?}",
        plan.remove
    );
    let planned = counting.take();
    let survey = Survey::load(&Archive::of(&repository, &cluster, SYSTEM, None)).await.unwrap();
    assert_eq!(survey.segments() as u64, segments);
    [list, planned, counting.take()]
}

#[tokio::test]
async fn requests_are_bounded_by_pages() {
    let few = requests(200, 2_000).await;
    let many = requests(2_000, 20_000).await;
    println!(
        "list, plan, survey: {few:?} with 200 backups and 2,000 segments, {many:?} with 2,000 and 20,000"
    );
    // A page has 1000 entries: 18 pages more of WAL, 1 or 2 more of backups.
    assert!(few[0] <= 5 && many[0] <= 5, "a list: {few:?} {many:?}");
    assert!(few[1] <= 12 && many[1] <= few[1] + 20, "a plan: {few:?} {many:?}");
    assert_eq!((few[2], many[2]), (4, 22), "a survey: a request a page, and two for the newest segment");
}
