//! Logical backups there and back, and what must be equal afterwards.

use std::process::Command;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use pgark::event::Silent;
use pgark::logical::{Dump, Load, LogicalContents};
use pgark::postgres::Tools;
use pgark::repository::BackupRecord;
use pgark::{
    Backup, CancellationToken, Ctx, Dumper, MemoryTransport, Observer, PartSource, Repository, Restore,
    Restored, Restorer, Result, SourceContents, Summary, codec,
};
use serde_json::{Map, Value};

use super::{conninfo, memory_repository};

/// A repository in memory with one backup that is not encrypted.
pub struct Logical {
    pub repository: Repository,
    pub memory: MemoryTransport,
    pub summary: Summary,
    pub record: BackupRecord,
}

pub async fn try_back_up(
    dump: impl Dumper + 'static,
    jobs: usize,
    observer: Arc<dyn Observer>,
) -> (Repository, MemoryTransport, Result<Summary>) {
    let (repository, memory) = memory_repository().await;
    let backup = Backup::builder()
        .repository(repository.clone())
        .dumper(dump)
        .shared_compressor(codec::parse("zstd:1").unwrap())
        .jobs(jobs)
        .observer(observer)
        .build()
        .unwrap();
    let summary = backup.run(&CancellationToken::new()).await;
    (repository, memory, summary)
}

pub async fn back_up(dump: impl Dumper + 'static, jobs: usize) -> Logical {
    watched(dump, jobs, Arc::new(Silent)).await
}

pub async fn watched(dump: impl Dumper + 'static, jobs: usize, observer: Arc<dyn Observer>) -> Logical {
    let (repository, memory, summary) = try_back_up(dump, jobs, observer).await;
    let summary = summary.unwrap();
    let record = repository.record(&summary.backup.cluster, &summary.backup.id).await.unwrap();
    Logical { repository, memory, summary, record }
}

impl Logical {
    pub async fn try_restore(&self, load: Load, jobs: usize) -> Result<Restored> {
        Restore::builder()
            .backup(self.repository.clone(), self.record.clone())
            .restorer(load)
            .jobs(jobs)
            .build()?
            .run(&CancellationToken::new())
            .await
    }

    pub async fn restore(&self, target: &str, tools: Tools) {
        self.try_restore(Load::into(conninfo(target)).tools(tools), 2).await.unwrap();
    }

    pub async fn contents(&self) -> LogicalContents {
        let keep = Keep::default();
        let restore = Restore::builder().backup(self.repository.clone(), self.record.clone());
        restore.restorer(keep.clone()).build().unwrap().run(&CancellationToken::new()).await.unwrap();
        let contents = keep.0.lock().unwrap();
        LogicalContents::from_contents(&contents).unwrap().unwrap()
    }
}

/// Keeps the contents, and restores nothing.
#[derive(Clone, Default)]
struct Keep(Arc<Mutex<SourceContents>>);

#[async_trait]
impl Restorer for Keep {
    fn accepts(&self, _: &str) -> bool {
        true
    }

    async fn restore(&self, parts: Arc<dyn PartSource>, _: &Ctx) -> Result<Map<String, Value>> {
        self.0.lock().unwrap().clone_from(parts.contents());
        Ok(Map::new())
    }
}

/// What `pg_dump` writes of a database, line by line in the order of the bytes: rows may come in another order.
pub fn pg_dump(tools: &Tools, major: u32, url: &str, more: &[&str]) -> Vec<Vec<u8>> {
    let tool = tools.find("pg_dump", major).unwrap();
    let mut command = Command::new(&tool.path);
    command.args(more).args(["--no-password", "--dbname", url]).env("LC_ALL", "C");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut lines: Vec<Vec<u8>> = output.stdout.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    let random = |line: &[u8]| line.starts_with(b"\\restrict ") || line.starts_with(b"\\unrestrict ");
    lines.retain(|line| !random(line));
    lines.sort_unstable();
    lines
}

/// Says which lines differ, and not all of them.
pub fn assert_same_lines(source: &[Vec<u8>], copy: &[Vec<u8>]) {
    assert!(source.len() > 10, "the dump is empty");
    let missing = |from: &[Vec<u8>], of: &[Vec<u8>]| -> Vec<String> {
        let of: std::collections::HashSet<&Vec<u8>> = of.iter().collect();
        let lines = from.iter().filter(|line| !of.contains(line)).take(20);
        lines.map(|line| String::from_utf8_lossy(&line[..line.len().min(300)]).into_owned()).collect()
    };
    let (lost, new) = (missing(source, copy), missing(copy, source));
    assert!(lost.is_empty() && new.is_empty(), "lost: {lost:#?}\nnew: {new:#?}");
    assert!(source == copy, "the same lines, not equally often: {} and {}", source.len(), copy.len());
}
