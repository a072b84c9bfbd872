//! What looks at a whole repository, on a large one in a local folder: wall time and peak memory.
//!
//! `cargo bench --bench catalog -- [BACKUPS] [SEGMENTS]`, by default 10,000 and 1,000,000: that takes 5 GB and 2 million
//! inodes below `TMPDIR`. Each is measured in a process of its own, twice: the second time the system has the folders in its
//! cache. `… -- WHAT FOLDER` measures one in a repository that is there; `… -- fill FOLDER [BACKUPS] [SEGMENTS]` makes one.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, unreachable_pub, dead_code)]

#[path = "../tests/support/shelf.rs"]
mod shelf;

use std::path::Path;
use std::time::{Duration, Instant};

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use pgark::check::{Report, check_repository};
use pgark::config::Settings;
use pgark::physical::{Recovery, Target};
use pgark::repository::{Catalog, ClusterName};
use pgark::retention::{Prune, Rules};
use pgark::status::{Objectives, Status};
use pgark::wal::{Archive, ArchivedWal};
use pgark::{CancellationToken, Repository, StoreOptions, open_store};
use shelf::{Fake, SYSTEM};

/// Peak memory of this process, in MiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

fn write(root: &Path, key: &str, body: &[u8]) {
    let path = root.join(key);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, body).unwrap();
}

fn fill(root: &Path, backups: u64, segments: u64) {
    let begin = Timestamp::now() - SignedDuration::from_hours(24 * 400);
    let step = SignedDuration::from_hours(24 * 399) / i32::try_from(backups).unwrap();
    let fake = |n: u64| {
        let segment = segments * n / backups;
        Fake::physical(
            begin + step * i32::try_from(n).unwrap(),
            segment,
            segment,
            usize::try_from(n).unwrap(),
        )
    };
    for n in 0..backups {
        for (key, body) in fake(n).objects() {
            write(root, &key, &body);
        }
    }
    for (key, body) in [shelf::marker(), shelf::identity()] {
        write(root, &key, &body);
    }
    for number in 0..segments {
        write(root, &shelf::segment(1, number), b"");
    }
}

async fn measure(what: &str, root: &str) -> String {
    let mut settings = Settings::default();
    settings.set_places(&[root.to_owned()]);
    let repository = Repository::open(open_store(root, &StoreOptions::default()).unwrap()).await.unwrap();
    let cluster = ClusterName::default();
    let mut rules = Rules::default();
    (rules.daily, rules.monthly) = (Some(30), Some(12));
    let prune = |rules| Prune::new(repository.clone(), cluster.clone(), rules).unwrap().wait(Duration::ZERO);
    let cancel = CancellationToken::new();
    match what {
        "index" => {
            // Keeps everything, and writes the index.
            rules.last = Some(usize::MAX);
            let (plan, _) = prune(rules).apply(&cancel).await.unwrap();
            format!("{} backups", plan.backups.len())
        }
        "list" => format!("{} backups", settings.list(&cluster).await.unwrap().backups.len()),
        "status" => {
            let status =
                Status::of(&repository, &cluster, &Objectives::default(), Timestamp::now()).await.unwrap();
            let wal = status.wal.unwrap();
            format!("{} segments, gap {:?}, window {:?}", wal.segments, wal.gap, status.window)
        }
        "plan" => {
            let plan = prune(rules).plan().await.unwrap();
            format!("{} backups and {} segments would go", plan.remove.backups, plan.remove.wal_segments)
        }
        "apply" => {
            // The oldest hundredth.
            let backups = Catalog::load(&repository, &cluster).await.unwrap().backups().len();
            rules = Rules::default();
            rules.last = Some(backups - backups / 100);
            let (_, done) = prune(rules).apply(&cancel).await.unwrap();
            format!("{} backups and {} objects of WAL went", done.removed.len(), done.wal_objects)
        }
        "backup" => {
            // What a physical backup asks before it begins.
            let catalog = Catalog::load(&repository, &cluster).await.unwrap();
            let archived = Archive::of(&repository, &cluster, SYSTEM, None).has_any().await.unwrap();
            format!("{} backups, an archive: {archived}", catalog.backups().len())
        }
        "wal list" => {
            let listing = settings.list_wal(&cluster).await.unwrap();
            format!("{} windows, {} runs", listing.windows.len(), listing.timelines[0].runs.len())
        }
        "recovery" => {
            let catalog = Catalog::load(&repository, &cluster).await.unwrap();
            let backups: Vec<_> = catalog.staying().cloned().collect();
            let mut recovery = Recovery::default();
            recovery.target = Target::Latest;
            let (plan, _) = settings.plan_recovery(&repository, &cluster, &backups, &recovery).await.unwrap();
            format!("{} to {}", plan.backup.id, plan.reach.to)
        }
        "check" => {
            let mut report = Report::default();
            check_repository(&repository, &cluster, None, &mut report).await;
            format!("{} findings", report.checks.len())
        }
        "walk" => {
            let count = repository.store().walk("clusters/main/wal").count().await;
            format!("{count} objects")
        }
        other => panic!("{other} is not measured"),
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    if let [what, root] = &args[..]
        && root.starts_with('/')
        && what != "fill"
    {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let begun = Instant::now();
        let said = runtime.block_on(measure(what, root));
        println!("{what:<9} {:>7.2} s  {:>4} MiB  {said}", begun.elapsed().as_secs_f64(), peak());
        return;
    }
    if let [what, root, rest @ ..] = &args[..]
        && what == "fill"
    {
        let number = |n: usize, default| rest.get(n).map_or(default, |text| text.parse().unwrap());
        fill(Path::new(root), number(0, 10_000), number(1, 1_000_000));
        return;
    }
    let number = |n: usize, default| args.get(n).map_or(default, |text| text.parse().unwrap());
    let (backups, segments) = (number(0, 10_000), number(1, 1_000_000));
    let folder = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    fill(folder.path(), backups, segments);
    println!("made {backups} backups and {segments} segments in {:.0} s", begun.elapsed().as_secs_f64());
    let twice = ["list", "status", "plan", "backup", "wal list", "recovery", "check", "walk"]
        .into_iter()
        .flat_map(|w| [w; 2]);
    for what in ["index"].into_iter().chain(twice).chain(["apply"]) {
        let program = std::env::current_exe().unwrap();
        let status = std::process::Command::new(program).arg(what).arg(folder.path()).status().unwrap();
        assert!(status.success());
    }
}
