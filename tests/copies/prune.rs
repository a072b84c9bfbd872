//! A prune of a repository in two places, one of which is away.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pgark::retention::{Prune, Rules};
use pgark::{CancellationToken, Event, Observer, Repository, Transport};

use crate::support::shelf::{Fake, SYSTEM, segment, shelf};
use crate::{Mortal, Places, main_cluster, synced};

/// A copy dies when something begins.
struct DiesAt {
    step: &'static str,
    mortal: Mortal,
}

impl Observer for DiesAt {
    fn event(&self, event: &Event) {
        if matches!(event, Event::Step { what } if what == self.step) {
            *self.mortal.dead.lock().unwrap() = true;
        }
    }
}

/// Keys of WAL: of a timeline each, and one of nothing.
const WAL_KEYS: [&str; 4] = [
    "01M7YBC43R60RYQ0FH5E5ZT001",
    "01M7YBC43R60RYQ0FH5E5ZT002",
    "01M7YBC43R60RYQ0FH5E5ZT003",
    "01M7YBC43R60RYQ0FH5E5ZT004",
];

/// The names of segments, histories and keys of WAL.
fn wal_of(mortal: &Mortal) -> Vec<String> {
    let short = |key: &String| {
        let rest = key.strip_prefix("clusters/main/wal/")?;
        let place = rest.split('/').next_back()?;
        let file = rest.split('/').rev().nth(1)?;
        Some(if file.len() == 24 { file.to_owned() } else { format!("{file}/{}", place.split('-').next()?) })
    };
    mortal.memory.keys().iter().filter_map(short).collect()
}

#[tokio::test]
async fn a_prune_takes_nothing_that_a_copy_needs_that_is_away() {
    let week = |n: u64| {
        let at = Timestamp::now() - SignedDuration::from_hours(24 * 7 * (3 - i64::try_from(n).unwrap()));
        let fake = Fake::physical(at, 10 * n + 2, 10 * n + 3, usize::try_from(n).unwrap());
        fake.with("timeline", n + 1)
    };
    let fakes = [week(0), week(1), week(2)];
    let places = Places::new(2);
    // Each copy was away while the other one got backups and WAL. The first has the keys of all of it.
    let held = [(&fakes[2..], 12..30_u64, &WAL_KEYS[..]), (&fakes[..2], 0..15, &WAL_KEYS[1..2])];
    for (mortal, (backups, segments, keys)) in places.mortals.iter().zip(held) {
        let mut objects = shelf(backups);
        for number in segments {
            let timeline = usize::try_from(number / 10).unwrap();
            let name = segment(1 + u32::try_from(timeline).unwrap(), number);
            let name = name.replace(".zst", &format!("-{}.zst.age", WAL_KEYS[timeline]));
            objects.insert(name, number.to_le_bytes().to_vec());
        }
        for timeline in 2..4 {
            let text = format!("{}\t0/1000002\tno reason\n", timeline - 1);
            let digest = blake3::hash(text.as_bytes()).to_hex();
            let name = format!("{timeline:08X}-{}.history", &digest[..32]);
            objects.insert(format!("clusters/main/wal/{SYSTEM}/history/{name}"), text.into_bytes());
        }
        for key in keys {
            objects.insert(format!("clusters/main/wal/keys/{key}.age"), vec![0; 8]);
        }
        for (key, body) in objects {
            mortal.memory.put(&key, body.into()).await.unwrap();
        }
        mortal.memory.age(Duration::from_hours(31 * 24));
    }
    let prune_told = |count: usize, observer: Option<Arc<dyn Observer>>| {
        let store = places.all();
        async move {
            let mut rules = Rules::default();
            rules.last = Some(count);
            let repository = Repository::open(store).await.unwrap();
            let prune = Prune::new(repository, main_cluster(), rules).unwrap();
            let mut prune = prune.wait(Duration::ZERO).allow_more(true);
            if let Some(observer) = observer {
                prune = prune.observer(observer);
            }
            prune.apply(&CancellationToken::new()).await.unwrap()
        }
    };
    let prune = |count: usize| prune_told(count, None);
    // Of the two last backups one is in the copy that is away. What it needs only the other one has.
    let before = wal_of(&places.mortals[0]);
    assert_eq!(before.len(), 18 + 2 + 4, "{before:?}");
    *places.mortals[1].dead.lock().unwrap() = true;
    let (plan, done) = prune(2).await;
    assert_eq!((done.wal_objects, plan.remove.wal_segments, plan.remove.wal_others), (0, 0, 0), "{plan:?}");
    assert!(plan.wal[0].why.contains("did not answer"), "{plan:?}");
    assert_eq!(wal_of(&places.mortals[0]), before);
    // It is back, and not synced yet: its WAL is sealed with a key that the first one has. Where it dies before that was seen
    // a second time, nothing is known of keys and histories.
    places.mortals[1].revive();
    let dies = DiesAt { step: "deleting WAL", mortal: places.mortals[1].clone() };
    let (plan, done) = prune_told(3, Some(Arc::new(dies))).await;
    assert_eq!((plan.wal_keys, done.wal_objects), (1, 0), "{plan:?} {done:?}");
    assert_eq!(wal_of(&places.mortals[0]), before);
    places.mortals[1].revive();
    let (plan, _) = prune(3).await;
    assert_eq!((plan.remove.wal_segments, plan.wal_keys, plan.remove.wal_others), (2, 1, 1), "{plan:?}");
    let there = wal_of(&places.mortals[0]);
    assert!(before.iter().filter(|name| !name.contains(WAL_KEYS[3])).eq(&there), "{there:?}");
    // Synced, what is needed no more goes from both.
    let report = synced(&places.repository().await).await;
    assert!(report.is_good(), "{report:?}");
    assert_eq!(wal_of(&places.mortals[0]), wal_of(&places.mortals[1]));
    assert_eq!(wal_of(&places.mortals[1]).len(), 28 + 2 + 3);
    places.mortals.iter().for_each(|mortal| mortal.memory.age(Duration::from_hours(31 * 24)));
    let (plan, done) = prune(1).await;
    assert_eq!((plan.remove.wal_segments, plan.remove.wal_others), (20, 3), "{plan:?}");
    assert!(done.left.is_empty() && done.removed.len() == 2, "{done:?}");
    for (at, mortal) in places.mortals.iter().enumerate() {
        let left = wal_of(mortal);
        let others = ["history/00000003".to_owned(), format!("keys/{}.age", WAL_KEYS[2])];
        assert!(others.iter().all(|name| left.contains(name)), "copy {at}: {left:?}");
        assert_eq!(left.len(), 8 + others.len(), "copy {at}: {left:?}");
        assert_eq!(places.listed(at).await, [fakes[2].id().parse().unwrap()]);
    }
}
