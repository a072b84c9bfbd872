//! Table-like bytes through frames, zstd 3 and age into a local store, with one job and with two, beside
//! `zstd -q -3 -T2 | age` on the same file. `PGARK_BENCH_MIB` sets the size; 1024 by default.
//!
//! `cargo bench --bench pipeline`

#![allow(clippy::unwrap_used, missing_docs)]

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::BytesMut;
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use pgark::crypt::Age;
use pgark::{
    Backup, CancellationToken, Ctx, Dumped, Dumper, Error, PartSink, PartSpec, Repository, Result,
    StoreOptions, open_store,
};
use tokio::io::AsyncReadExt;

const RECIPIENT: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";

/// Reads a file as one part.
struct FileDumper(PathBuf);

#[async_trait]
impl Dumper for FileDumper {
    fn kind(&self) -> &'static str {
        "bench"
    }

    fn max_open(&self, _: usize) -> usize {
        1
    }

    async fn dump(&self, parts: Arc<dyn PartSink>, _: &Ctx) -> Result<Dumped> {
        let failed = |e| Error::io("reading the file", e);
        let mut file = tokio::fs::File::open(&self.0).await.map_err(failed)?;
        let mut part = parts.open(PartSpec { kind: "copy".into(), name: "events".into() }).await?;
        loop {
            let mut buffer = BytesMut::with_capacity(1 << 20);
            if file.read_buf(&mut buffer).await.map_err(failed)? == 0 {
                break;
            }
            part.write(buffer.freeze()).await?;
        }
        part.finish().await?;
        Ok(Dumped::default())
    }
}

/// Rows as COPY writes them: keys, times, uuids, words, numbers, JSON.
fn write_rows(path: &Path, mib: usize) {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    let (mut state, mut written, mut id) = (42u64, 0, 0u64);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let kinds = ["login", "view", "add_to_cart", "checkout", "refund"];
    let agents = ["Mozilla/5.0 (X11; Linux x86_64)", "curl/8.5", "okhttp/4.12"];
    let mut row = String::new();
    while written < mib << 20 {
        row.clear();
        id += 1;
        let (a, b, c) = (next(), next(), next());
        let account = (id % 200_000).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let _ = writeln!(
            row,
            "{id}\t2026-{:02}-{:02} {:02}:{:02}:{:02}.{:06}+00\t{account:016x}{account:016x}\t{}\t{}.{:02}\t{{\"ip\": \"10.{}.{}.7\", \"note\": \"{}\", \"agent\": \"{}\", \"items\": {}, \"session\": \"{a:016x}{b:016x}\"}}",
            1 + id / 3_000_000 % 12,
            1 + id / 100_000 % 28,
            id / 3600 % 24,
            id / 60 % 60,
            id % 60,
            c % 1_000_000,
            kinds[(a % 5) as usize],
            b % 1000,
            c % 100,
            id % 256,
            id / 256 % 256,
            "m".repeat((c >> 32) as usize % 40),
            agents[(b >> 40) as usize % 3],
            a % 20,
        );
        file.write_all(row.as_bytes()).unwrap();
        written += row.len();
    }
    file.flush().unwrap();
}

fn pgark(file: &Path, folder: &Path, jobs: usize) -> Duration {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let place = folder.join("repository");
    let took = runtime.block_on(async {
        let store = open_store(&place.display().to_string(), &StoreOptions::default()).unwrap();
        let (repository, _) = Repository::init(store).await.unwrap();
        let backup = Backup::builder()
            .repository(repository)
            .dumper(FileDumper(file.to_owned()))
            .encryptor(Age::new().to(RECIPIENT).unwrap())
            .jobs(jobs)
            .build()
            .unwrap();
        let begun = Instant::now();
        backup.run(&CancellationToken::new()).await.unwrap();
        begun.elapsed()
    });
    std::fs::remove_dir_all(place).unwrap();
    took
}

fn zstd_and_age(file: &Path, folder: &Path) -> Duration {
    let out = folder.join("out");
    let script = format!("zstd -q -3 -T2 -c '{}' | age -r {RECIPIENT} > '{}'", file.display(), out.display());
    let begun = Instant::now();
    assert!(
        Command::new("sh").arg("-c").arg(script).status().unwrap().success(),
        "the bench needs zstd and age"
    );
    let took = begun.elapsed();
    std::fs::remove_file(out).unwrap();
    took
}

fn bench(criterion: &mut Criterion) {
    let mib = std::env::var("PGARK_BENCH_MIB").ok().and_then(|v| v.parse().ok()).unwrap_or(1024);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows");
    write_rows(&file, mib);
    let mut group = criterion.benchmark_group("pipeline");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).warm_up_time(Duration::from_secs(1));
    group.measurement_time(Duration::from_secs(30)).throughput(Throughput::Bytes((mib as u64) << 20));
    for jobs in [1, 2] {
        group.bench_with_input(
            BenchmarkId::new("pgark, zstd 3, age, jobs", jobs),
            &jobs,
            |bencher, &jobs| {
                bencher.iter_custom(|n| (0..n).map(|_| pgark(&file, folder.path(), jobs)).sum());
            },
        );
    }
    group.bench_function("zstd -q -3 -T2 | age", |bencher| {
        bencher.iter_custom(|n| (0..n).map(|_| zstd_and_age(&file, folder.path())).sum());
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
