//! Lists, plans of prunes and surveys of a large repository on a local store: wall time and peak memory.
//!
//! `cargo bench --bench catalog -- [BACKUPS] [SEGMENTS]`, by default 10,000 and 1,000,000. Each is measured in a process of
//! its own, twice: the second time the system has the folders in its cache.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, unreachable_pub, dead_code)]

#[path = "../tests/support/shelf.rs"]
mod shelf;

use std::path::Path;
use std::time::Instant;

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use pgark::repository::{Catalog, ClusterName};
use pgark::retention::{Prune, Rules};
use pgark::wal::{Archive, Survey};
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
    let repository = Repository::open(open_store(root, &StoreOptions::default()).unwrap()).await.unwrap();
    let cluster = ClusterName::default();
    let mut rules = Rules::default();
    (rules.daily, rules.monthly) = (Some(30), Some(12));
    match what {
        "index" => {
            // Keeps everything, and writes the index.
            rules.last = Some(usize::MAX);
            let prune = Prune::new(repository, cluster, rules).unwrap();
            let (plan, _) = prune.apply(&CancellationToken::new()).await.unwrap();
            format!("{} backups", plan.backups.len())
        }
        "list" => {
            let catalog = Catalog::load(&repository, &cluster).await.unwrap();
            format!("{} backups", catalog.backups().len())
        }
        "plan" => {
            let plan = Prune::new(repository, cluster, rules).unwrap().plan().await.unwrap();
            format!("{} backups and {} segments would go", plan.remove.backups, plan.remove.wal_segments)
        }
        "walk" => {
            let count = repository.store().walk("clusters/main/wal").count().await;
            format!("{count} objects")
        }
        _ => {
            let survey = Survey::load(&Archive::of(&repository, &cluster, SYSTEM, None)).await.unwrap();
            format!("{} segments in {} runs", survey.segments(), survey.runs(1).len())
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    if let [what, root] = &args[..]
        && root.starts_with('/')
    {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let begun = Instant::now();
        let said = runtime.block_on(measure(what, root));
        println!("{what:<8} {:>7.2} s  {:>4} MiB  {said}", begun.elapsed().as_secs_f64(), peak());
        return;
    }
    let number = |n: usize, default| args.get(n).map_or(default, |text| text.parse().unwrap());
    let (backups, segments) = (number(0, 10_000), number(1, 1_000_000));
    let folder = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    fill(folder.path(), backups, segments);
    println!("made {backups} backups and {segments} segments in {:.0} s", begun.elapsed().as_secs_f64());
    for what in ["index", "list", "list", "plan", "plan", "walk", "walk", "survey", "survey"] {
        let program = std::env::current_exe().unwrap();
        let status = std::process::Command::new(program).arg(what).arg(folder.path()).status().unwrap();
        assert!(status.success());
    }
}
