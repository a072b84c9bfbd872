//! An application that backs a database up, verifies the backup and restores it, with parts of its own.
//!
//! ```text
//! cargo run --example embed                           # on a throwaway server, in a temporary folder
//! cargo run --example embed -- CONNECTION REPOSITORY  # "host=... dbname=shop" s3://bucket/folder
//! ```
//!
//! It restores beside the database that it backs up, into a new one with `_restored` behind the name.

#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use pgark::codec::Zstd;
use pgark::crypt::{Age, IdentityFile, generate_identity};
use pgark::logical::{Dump, Load};
use pgark::postgres::{ConnInfo, Session, TempServer, TempServerOptions};
use pgark::repository::{BackupId, BackupSummary, Catalog, ClusterName};
use pgark::retention::Verdict;
use pgark::verify::{VerifyOptions, verify};
use pgark::{
    Backup, CancellationToken, Compressor, Error, ErrorKind, Event, Observer, Repository, Restore, Result,
    RetentionPolicy, StoreOptions, open_store,
};
use secrecy::ExposeSecret;

/// Tells how far a run is: a line every tenth of the way. It is called from many tasks at once.
#[derive(Default)]
struct Tenths {
    expected: AtomicU64,
    told: AtomicU64,
}

impl Observer for Tenths {
    fn event(&self, event: &Event) {
        match event {
            Event::Expected { raw_bytes } => self.expected.store(*raw_bytes, Ordering::Relaxed),
            Event::Progress { raw_bytes, .. } => {
                // The expectation is an estimate, or none at all.
                let tenths = raw_bytes * 10 / self.expected.load(Ordering::Relaxed).max(1);
                let news = self.told.fetch_max(tenths, Ordering::Relaxed) < tenths;
                if news && tenths <= 10 {
                    println!("  about {tenths}0 %: {raw_bytes} bytes");
                }
            }
            Event::Warning { message } => println!("  warning: {message}"),
            // Later versions can tell more.
            _ => {}
        }
    }
}

/// zstd that tries a little of every frame first, and takes its time only where that pays.
///
/// Its name stays `zstd`: any pgark, and the command `zstd`, reads what it writes.
struct Thrifty {
    quick: Zstd,
    thorough: Zstd,
}

impl Thrifty {
    /// As much as is tried.
    const SAMPLE: usize = 16 * 1024;

    fn new() -> Result<Self> {
        Ok(Self { quick: Zstd::new(1)?, thorough: Zstd::new(9)? })
    }
}

impl Compressor for Thrifty {
    fn name(&self) -> &'static str {
        self.quick.name()
    }

    fn suffix(&self) -> Option<&'static str> {
        self.quick.suffix()
    }

    fn compress(&self, raw: &[u8], frame: &mut Vec<u8>) -> Result<()> {
        let sample = &raw[..raw.len().min(Self::SAMPLE)];
        let mut tried = Vec::new();
        self.quick.compress(sample, &mut tried)?;
        let pays = tried.len() < sample.len() / 2;
        if pays { self.thorough.compress(raw, frame) } else { self.quick.compress(raw, frame) }
    }

    fn decompress(&self, frame: &[u8], raw_len: usize, raw: &mut Vec<u8>) -> Result<()> {
        self.quick.decompress(frame, raw_len, raw)
    }

    // The run counts this into the memory that it promises not to exceed.
    fn working_bytes(&self, frame_bytes: usize) -> usize {
        self.quick.working_bytes(frame_bytes) + self.thorough.working_bytes(frame_bytes) + 2 * Self::SAMPLE
    }
}

/// Keeps the last backup of every day, by UTC.
struct NewestOfEachDay;

impl RetentionPolicy for NewestOfEachDay {
    fn decide(&self, backups: &[BackupSummary], _: Timestamp) -> Vec<Verdict> {
        let day = |backup: &BackupSummary| backup.started.to_zoned(TimeZone::UTC).date();
        // They come oldest first, so the last of a day stays in the map.
        let newest: BTreeMap<Date, &BackupId> = backups.iter().map(|b| (day(b), &b.id)).collect();
        let verdict = |backup: &BackupSummary| {
            let day = day(backup);
            let keep = newest.get(&day) == Some(&&backup.id);
            let reasons = if keep { vec![format!("the newest of {day}")] } else { Vec::new() };
            Verdict { id: backup.id.clone(), keep, reasons }
        };
        backups.iter().map(verdict).collect()
    }
}

/// Where it all happens. What is temporary goes with the value.
struct Place {
    connection: ConnInfo,
    repository: String,
    temporary: Option<(TempServer, tempfile::TempDir)>,
}

impl Place {
    fn given(connection: &str, repository: String) -> Result<Self> {
        Ok(Self { connection: ConnInfo::parse(connection)?, repository, temporary: None })
    }

    async fn throwaway() -> Result<Self> {
        let server = TempServer::start(&TempServerOptions::default())?;
        let folder = tempfile::tempdir().map_err(|e| Error::io("making a folder", e))?;
        server.conninfo("postgres")?.connect().await?.rows("CREATE DATABASE shop").await?;
        let connection = server.conninfo("shop")?;
        let orders = "CREATE TABLE orders (id int PRIMARY KEY, note text);
                      INSERT INTO orders SELECT i, md5(i::text) FROM generate_series(1, 100000) i;
                      CREATE TABLE pictures AS SELECT i AS id, sha512(i::text::bytea) AS picture FROM generate_series(1, 50000) i";
        connection.connect().await?.rows(orders).await?;
        let repository = folder.path().join("backups").display().to_string();
        Ok(Self { connection, repository, temporary: Some((server, folder)) })
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let place = match (arguments.next(), arguments.next(), arguments.next()) {
        (None, ..) => Place::throwaway().await?,
        (Some(connection), Some(repository), None) => Place::given(&connection, repository)?,
        _ => {
            return Err(Error::new(
                ErrorKind::Usage,
                "give a connection string and a repository, or nothing",
            ));
        }
    };

    // What an application has at hand: a token that stops everything, a key, a repository.
    let cancel = CancellationToken::new();
    let (identity, recipient) = generate_identity(Timestamp::now());
    let reader =
        || -> Result<Age> { Ok(Age::new().identities(IdentityFile::parse(identity.expose_secret())?)) };
    let store = open_store(&place.repository, &StoreOptions::default())?;
    let (repository, new) = Repository::init(store).await?;
    println!("{} repository {}", if new { "new" } else { "known" }, repository.store().location());
    if place.temporary.is_none() {
        println!("its new backups are sealed to this key; keep it:\n{}", identity.expose_secret());
    }

    // Two backups, so that the retention policy has a choice. Writing needs the recipient only.
    let cluster: ClusterName = "embed".parse()?;
    for label in ["first", "second"] {
        let summary = Backup::builder()
            .repository(repository.clone())
            .cluster(cluster.clone())
            .dumper(Dump::new(place.connection.clone()))
            .compressor(Thrifty::new()?)
            .encryptor(Age::new().to(&recipient)?)
            .observer(Arc::new(Tenths::default()))
            .label(label)
            .build()?
            .run(&cancel)
            .await?;
        println!(
            "backup {}: {} bytes became {}",
            summary.backup.id, summary.raw_bytes, summary.backup.stored_bytes
        );
    }

    let catalog = Catalog::load(&repository, &cluster).await?;
    let backups: Vec<BackupSummary> = catalog.backups().cloned().collect();
    for verdict in NewestOfEachDay.decide(&backups, Timestamp::now()) {
        let opinion =
            if verdict.keep { format!("stays: {}", verdict.reasons.join(", ")) } else { "may go".to_owned() };
        println!("{} {opinion}", verdict.id);
    }

    // Every stored byte, and every byte of the database's contents, against its digest.
    let record = repository.record(&cluster, &catalog.find("latest")?.id).await?;
    let mut options = VerifyOptions::default();
    options.encryptor = Some(Arc::new(reader()?));
    let report = verify(&repository, &record, options, &cancel).await?;
    if !report.is_good() {
        return Err(Error::new(
            ErrorKind::Integrity,
            format!("the backup is damaged: {:?}", report.findings),
        ));
    }
    println!("verified {} objects, {} bytes of contents", report.objects, report.raw_bytes);

    // The compressor need not be given: the record says zstd.
    let target = place.connection.with_database(&format!("{}_restored", place.connection.database()));
    let restored = Restore::builder()
        .backup(repository, record)
        .encryptor(reader()?)
        .restorer(Load::into(target.clone()))
        .observer(Arc::new(Tenths::default()))
        .build()?
        .run(&cancel)
        .await?;
    println!("restored {} bytes into {}", restored.raw_bytes, target.database());

    let before = counts(&place.connection.connect().await?).await?;
    let after = counts(&target.connect().await?).await?;
    println!("rows before: {before:?}\nrows after:  {after:?}");
    if before != after {
        return Err(Error::new(ErrorKind::Integrity, "the restored database has other rows"));
    }
    Ok(())
}

/// How many rows each table has.
async fn counts(session: &Session) -> Result<BTreeMap<String, String>> {
    let tables = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables \
                  WHERE schemaname NOT IN ('pg_catalog', 'information_schema')";
    let mut counts = BTreeMap::new();
    for table in session.rows(tables).await?.into_iter().flatten().flatten() {
        let count = session.value(&format!("SELECT count(*) FROM {table}")).await?;
        counts.insert(table, count.unwrap_or_default());
    }
    Ok(counts)
}
