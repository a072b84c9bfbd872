//! Logical backups beside stock tools: dumps of every format, imported, exported, restored and compared.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use pgark::logical::{Export, ExportFormat, Import, Method};
use pgark::postgres::Tools;
use pgark::repository::{BackupRecord, ClusterName};
use pgark::{Backup, CancellationToken, Error, Repository, Restore, Restored};

use super::{connect, fingerprint, memory_repository, sample};

/// A server and the client tools of its version.
pub struct Place {
    pub tools: PathBuf,
    pub major: u32,
    url: Box<dyn Fn(&str) -> String + Send + Sync>,
}

impl Place {
    pub fn new(
        major: u32,
        tools: impl Into<PathBuf>,
        url: impl Fn(&str) -> String + Send + Sync + 'static,
    ) -> Self {
        Self { tools: tools.into(), major, url: Box::new(url) }
    }

    pub fn url(&self, database: &str) -> String {
        (self.url)(database)
    }

    /// Runs a client tool; it must succeed.
    pub fn run(&self, tool: &str, args: &[&str]) -> Vec<u8> {
        let output = self.try_run(tool, args);
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{tool} {args:?}: {words}");
        output.stdout
    }

    pub fn try_run(&self, tool: &str, args: &[&str]) -> Output {
        Command::new(self.tools.join(tool)).args(args).env("LC_ALL", "C").output().unwrap()
    }

    pub async fn create(&self, database: &str, options: &str) {
        let session = connect(&self.url("postgres")).await;
        session.rows(&format!("CREATE DATABASE {database} {options}")).await.unwrap();
    }

    /// The database as SQL, without the lines that differ from dump to dump.
    pub fn dumped(&self, database: &str) -> String {
        let url = self.url(database);
        let text = self.run("pg_dump", &["--dbname", &url]);
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines()
            .filter(|l| !l.starts_with("\\restrict") && !l.starts_with("\\unrestrict"))
            .fold(String::new(), |text, line| text + line + "\n")
    }

    /// Compares two databases: their dumps, and sums over their contents.
    pub async fn compare(&self, one: &str, other: &str) {
        let (left, right) = (self.dumped(one), self.dumped(other));
        if let Some((left, right)) = left.lines().zip(right.lines()).find(|(left, right)| left != right) {
            panic!("{one} and {other} differ: {left:?}, {right:?}");
        }
        assert_eq!(left.len(), right.len(), "{one} and {other}");
        assert_eq!(
            fingerprint(&connect(&self.url(one)).await).await,
            fingerprint(&connect(&self.url(other)).await).await
        );
    }

    /// Restores an archive with stock `pg_restore` into a new database and compares it with `source`.
    pub async fn restore_and_compare(&self, archive: &Path, name: &str, args: &[&[&str]], source: &str) {
        self.create(name, "TEMPLATE template0").await;
        let (url, archive) = (self.url(name), archive.display().to_string());
        for args in args {
            let all = [&["--exit-on-error", "--dbname", &url], *args, &[&archive]].concat();
            self.run("pg_restore", &all);
        }
        self.compare(source, name).await;
        self.drop(name).await;
    }

    /// Runs a script and compares.
    pub async fn run_and_compare(&self, script: &Path, name: &str, source: &str) {
        self.create(name, "TEMPLATE template0").await;
        let (url, script) = (self.url(name), script.display().to_string());
        let args = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--dbname", &url, "--file", &script];
        self.run("psql", &args);
        self.compare(source, name).await;
        self.drop(name).await;
    }

    pub async fn drop(&self, name: &str) {
        let session = connect(&self.url("postgres")).await;
        session.rows(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
    }

    /// Makes a dump. `args` say the format.
    pub fn dump(&self, database: &str, to: &Path, args: &[&str]) {
        let (url, to) = (self.url(database), to.display().to_string());
        self.run("pg_dump", &[&["--dbname", &url, "--file", &to], args].concat());
    }
}

/// A database with a bit of everything: see [`sample`]; and tables that are larger than what is held in memory, large
/// objects of several owners, and names of every kind.
pub fn rich() -> String {
    sample(3000)
        + r#"
        CREATE TABLE large AS SELECT i, repeat(md5(i::text), 20) AS text FROM generate_series(1, 9000) i;
        CREATE TABLE "quo""te"".'s" ("a b" int, "c,""d" text, "x
y" text);
        INSERT INTO "quo""te"".'s" VALUES (1, 'a,b', NULL), (2, '', E'"\n\r\t\\.'), (3, '\.', '\N'), (NULL, '\', ' ');
        CREATE TABLE "new
line" (a text);
        INSERT INTO "new
line" VALUES ('\.'), (NULL), (''), (E'\\.\n\\.');
        SELECT lo_from_bytea(5000 + i, decode(repeat(md5(i::text), i), 'hex')) FROM generate_series(0, 30) i;
        SELECT lo_create(7777);
        SELECT lo_from_bytea(8888, decode(repeat(md5('x'), 300000), 'hex'));
        CREATE ROLE other_owner;
        ALTER LARGE OBJECT 5003 OWNER TO other_owner;
        ALTER LARGE OBJECT 5009 OWNER TO other_owner;
        GRANT SELECT ON LARGE OBJECT 5005 TO other_owner;
        SELECT lo_from_bytea(3000000000, 'above two to the 31st');
        COMMENT ON LARGE OBJECT 5001 IS 'a comment';
        "#
}

/// Imports a file into a new repository.
pub async fn import(file: &Path) -> (Repository, BackupRecord) {
    let (repository, _) = memory_repository().await;
    let record = import_into(&repository, file).await.unwrap_or_else(|e| panic!("{}: {e:?}", file.display()));
    (repository, record)
}

pub async fn import_into(repository: &Repository, file: &Path) -> Result<BackupRecord, Error> {
    let backup = Backup::builder().repository(repository.clone()).dumper(Import::new(file)).build()?;
    let summary = backup.run(&CancellationToken::new()).await?;
    repository.record(&ClusterName::default(), &summary.backup.id).await
}

/// Exports a backup.
pub async fn export(
    (repository, record): &(Repository, BackupRecord),
    to: &Path,
    format: ExportFormat,
    compress: Option<Method>,
    tools: &Path,
) -> Result<Restored, Error> {
    let export = Export::to(to, format).compress(compress).tools(Tools::in_folder(tools));
    run_export(repository, record, export).await
}

pub async fn run_export(
    repository: &Repository,
    record: &BackupRecord,
    export: Export,
) -> Result<Restored, Error> {
    let restore = Restore::builder().backup(repository.clone(), record.clone()).restorer(export).build()?;
    restore.run(&CancellationToken::new()).await
}

/// A stream that keeps what it is given.
#[derive(Clone, Default)]
pub struct Kept(pub Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
