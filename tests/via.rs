//! Backups and restores through `docker exec`, against servers that no port leads to.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use pgark::logical::{Dump, Load};
use pgark::physical::BaseBackupDump;
use pgark::postgres::{ConnInfo, Session, Staged, Tool, Tools, Via};
use pgark::repository::ClusterName;
use pgark::{Backup, CancellationToken, Error, ErrorKind, Repository, Restore, Summary};
use support::{conninfo, fingerprint, left_out, memory_repository, sample};
use testcontainers_modules::postgres::Postgres;
use testcontainers_modules::testcontainers::runners::AsyncRunner;
use testcontainers_modules::testcontainers::{ContainerAsync, ImageExt};

const PASSWORD: &str = "s3cret o'f \\ \"x\"";

/// A server in a container without a network. It wants its password, over its socket too.
struct Alone(ContainerAsync<Postgres>);

impl Alone {
    async fn start(major: u32) -> Self {
        let container = Postgres::default()
            .with_user("postgres")
            .with_password(PASSWORD)
            .with_tag(major.to_string())
            .with_network("none")
            .with_startup_timeout(Duration::from_mins(2))
            .start()
            .await
            .unwrap_or_else(|e| panic!("tests need a Docker engine with the image postgres:{major}: {e}"));
        let alone = Self(container);
        let lines = ["local all all", "local replication all", "host all all all"]
            .map(|line| format!("{line} scram-sha-256"))
            .join("\n");
        alone.sh(&format!("echo '{lines}' > \"$PGDATA/pg_hba.conf\""));
        alone.sh("su postgres -c \"$(command -v pg_ctl) -D $PGDATA reload\"");
        let session = alone.until_it_asks().await;
        session.rows("CREATE DATABASE shop").await.unwrap();
        alone
    }

    /// Waits until a wrong password is refused.
    async fn until_it_asks(&self) -> Session {
        let wrong = conninfo("user=postgres dbname=postgres password=wrong").with_via(self.via());
        let begun = Instant::now();
        while let Err(error) = wrong.connect().await.map(drop).map_or_else(Err, |()| Ok::<_, Error>(())) {
            if error.kind() == ErrorKind::Auth {
                return self.connect("postgres").await;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{error:?}");
        }
        Box::pin(self.until_it_asks()).await
    }

    fn via(&self) -> Via {
        format!("docker:{}", self.0.id()).parse().unwrap()
    }

    /// A database, by its socket or by `host=…`.
    fn at(&self, database: &str, more: &str) -> ConnInfo {
        let password = PASSWORD.replace('\\', "\\\\").replace('\'', "\\'");
        let text = format!("user=postgres dbname={database} password='{password}' {more}");
        conninfo(&text).with_via(self.via())
    }

    async fn connect(&self, database: &str) -> Session {
        self.at(database, "").connect().await.unwrap()
    }

    fn try_sh(&self, script: &str) -> Output {
        Command::new("docker").args(["exec", self.0.id(), "sh", "-c", script]).output().unwrap()
    }

    /// Runs a script in the container; what it prints.
    fn sh(&self, script: &str) -> String {
        let output = self.try_sh(script);
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// How many programs of a name run in the container.
    fn running(&self, program: &str) -> usize {
        let script = "for p in /proc/[0-9]*; do cat $p/comm 2>/dev/null; done; true";
        self.sh(script).lines().filter(|line| *line == program).count()
    }

    /// Nothing that pgark started is left, and the server took none of it for a child of its own that crashed.
    async fn assert_undisturbed(&self, started: &str) {
        let begun = Instant::now();
        let session = self.connect("postgres").await;
        loop {
            let sessions = session
                .rows(
                    "SELECT application_name, state, query FROM pg_stat_activity \
                     WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND application_name <> 'held'",
                )
                .await
                .unwrap();
            let programs = ["pg_dump", "pg_restore"].map(|program| self.running(program));
            // That of this session, and that of a session that holds a lock.
            let relays = self.running("perl");
            if sessions.is_empty() && programs == [0, 0] && relays <= 2 {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "left: {sessions:?} {programs:?} {relays}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(self.started().await, started, "the server was restarted");
        let logs = Command::new("docker").args(["logs", self.0.id()]).output().unwrap();
        let logs = String::from_utf8_lossy(&logs.stderr).into_owned();
        assert!(!logs.contains("terminating any other active server processes"), "{logs}");
    }

    /// When the server's processes were last made anew: a crash of one changes the checkpointer.
    async fn started(&self) -> String {
        let session = self.connect("postgres").await;
        let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
        session.value(sql).await.unwrap().unwrap()
    }
}

async fn back_up(repository: &Repository, connection: ConnInfo, tools: Tools) -> Result<Summary, Error> {
    let dumper = Dump::new(connection).tools(tools);
    let backup = Backup::builder().repository(repository.clone()).dumper(dumper).build().unwrap();
    backup.run(&CancellationToken::new()).await
}

async fn restore(
    repository: &Repository,
    summary: &Summary,
    to: ConnInfo,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let record = repository.record(&ClusterName::default(), &summary.backup.id).await.unwrap();
    let restorer = Load::into(to);
    let restore = Restore::builder().backup(repository.clone(), record).restorer(restorer).build().unwrap();
    restore.run(cancel).await.map(drop)
}

async fn there_and_back(major: u32) {
    if left_out("docker") {
        return;
    }
    let server = Alone::start(major).await;
    let source = server.connect("shop").await;
    assert!(source.info().hosts()[0].is_socket(), "{:?}", source.info());
    source.rows(&sample(20_000)).await.unwrap();
    let (before, started) = (fingerprint(&source).await, server.started().await);
    drop(source);
    let (repository, _) = memory_repository().await;
    for (number, more) in
        ["", "host=127.0.0.1", "host=localhost port=5432 sslmode=prefer"].into_iter().enumerate()
    {
        let summary = back_up(&repository, server.at("shop", more), Tools::installed()).await.unwrap();
        assert!(summary.warnings.is_empty(), "{:?}", summary.warnings);
        let target = format!("copy_{number}");
        let cancel = CancellationToken::new();
        restore(&repository, &summary, server.at(&target, more), &cancel).await.unwrap();
        assert_eq!(fingerprint(&server.connect(&target).await).await, before, "{more}");
    }
    server.assert_undisturbed(&started).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_15_without_a_port() {
    there_and_back(15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_17_without_a_port() {
    there_and_back(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_18_without_a_port() {
    there_and_back(18).await;
}

/// Without perl, python and socat there is bash, which knows ports only.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_perl_will_do() {
    if left_out("docker") {
        return;
    }
    let server = Alone::start(17).await;
    server.connect("shop").await.rows(&sample(5000)).await.unwrap();
    server.sh("mv /usr/bin/perl /usr/bin/perl.away");
    let source = server.connect("shop").await;
    let host = &source.info().hosts()[0];
    assert_eq!((host.name.as_str(), host.address.as_deref()), ("localhost", Some("127.0.0.1")));
    let (before, started) = (fingerprint(&source).await, server.started().await);
    drop(source);
    let (repository, _) = memory_repository().await;
    let summary = back_up(&repository, server.at("shop", ""), Tools::installed()).await.unwrap();
    let cancel = CancellationToken::new();
    restore(&repository, &summary, server.at("copy", ""), &cancel).await.unwrap();
    assert_eq!(fingerprint(&server.connect("copy").await).await, before);
    let error = server.at("shop", "host=/var/run/postgresql").connect().await.map(drop).unwrap_err();
    assert!(words(&error).contains("install perl, python3 or socat there"), "{error:?}");
    server.assert_undisturbed(&started).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_a_cluster_come_through_as_well() {
    if left_out("docker") {
        return;
    }
    let server = Alone::start(17).await;
    server.connect("shop").await.rows(&sample(5000)).await.unwrap();
    let (repository, _) = memory_repository().await;
    let dumper = BaseBackupDump::new(server.at("postgres", ""));
    let backup = Backup::builder().repository(repository).dumper(dumper).build().unwrap();
    let summary = backup.run(&CancellationToken::new()).await.unwrap();
    assert!(summary.raw_bytes > 20 << 20 && summary.warnings.is_empty(), "{summary:?}");
}

/// What an error says, with its causes and its hint.
fn words(error: &Error) -> String {
    format!("{error} {} {}", error.causes().join(" "), error.hint().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said() {
    if left_out("docker") {
        return;
    }
    let server = Alone::start(17).await;
    let (repository, memory) = memory_repository().await;
    let fails = async |connection: ConnInfo, tools: Tools, kind, wanted: &[&str]| {
        let error = back_up(&repository, connection, tools).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        let said = words(&error);
        assert!(wanted.iter().all(|wanted| said.contains(wanted)), "{wanted:?} is not in {said}");
        assert!(!said.contains("s3cret"), "{said}");
        assert_eq!(support::left(&memory), ["pgark.json"], "something is left behind");
    };
    let installed = Tools::installed;
    let nowhere = conninfo("user=postgres").with_via("docker:pgark-no-such-container".parse().unwrap());
    let named = ["docker:pgark-no-such-container", "No such container", "docker ps"];
    fails(nowhere, installed(), ErrorKind::Connect, &named).await;
    let named =
        conninfo("user=postgres host=127.0.0.1").with_via("docker:pgark-no-such-container".parse().unwrap());
    fails(named, installed(), ErrorKind::Connect, &["No such container", "docker ps"]).await;

    let wrong = conninfo("user=postgres dbname=shop password=wrong").with_via(server.via());
    fails(wrong, installed(), ErrorKind::Auth, &["password of user postgres", "docker:"]).await;
    let none = conninfo("user=postgres dbname=shop").with_via(server.via());
    fails(none, installed(), ErrorKind::Auth, &["wants a password"]).await;
    let at = |more: &str| server.at("shop", more);
    fails(server.at("nowhere", ""), installed(), ErrorKind::NoDatabase, &["no database nowhere"]).await;
    let refused = ["127.0.0.1:9 in docker:", "Connection refused", "host and port"];
    fails(at("host=127.0.0.1 port=9"), installed(), ErrorKind::Connect, &refused).await;
    let socket = ["/tmp/.s.PGSQL.5432 in docker:", "No such file"];
    fails(at("host=/tmp"), installed(), ErrorKind::Connect, &socket).await;
    let missing = ["pg_dump is not installed in docker:", "there: apt-get install postgresql-client-17"];
    fails(at(""), Tools::in_folder("/nowhere"), ErrorKind::ToolMissing, &missing).await;

    let folder = "/usr/lib/postgresql/17/bin";
    back_up(&repository, at(""), Tools::in_folder(folder)).await.unwrap();

    server.0.stop().await.unwrap();
    let (repository, _) = memory_repository().await;
    for more in ["", "host=127.0.0.1"] {
        let error = back_up(&repository, at(more), installed()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connect, "{error:?}");
        let said = words(&error);
        assert!(said.contains("is not running") && said.contains("docker start"), "{said}");
    }
}

/// Runs `work` and cancels it when `query` has an answer in the container.
async fn cancelled_when(
    server: &Alone,
    query: &str,
    work: impl Future<Output = Result<(), Error>> + Send + 'static,
    cancel: CancellationToken,
) {
    let work = tokio::spawn(work);
    let session = server.connect("postgres").await;
    let begun = Instant::now();
    while session.rows(query).await.unwrap().is_empty() {
        assert!(begun.elapsed() < Duration::from_mins(1) && !work.is_finished(), "it does not come to that");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(session);
    let asked = Instant::now();
    cancel.cancel();
    assert_eq!(work.await.unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(asked.elapsed() < Duration::from_secs(15), "it took {:?} to end", asked.elapsed());
}

const WAITS: &str =
    "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'LOCK TABLE%'";

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_backup_leaves_no_pg_dump_there() {
    if left_out("docker") {
        return;
    }
    let server = Alone::start(17).await;
    let held = server.at("shop", "application_name=held").connect().await.unwrap();
    held.rows("CREATE TABLE t AS SELECT 1 AS x").await.unwrap();
    held.rows("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let started = server.started().await;
    let (repository, memory) = memory_repository().await;
    let cancel = CancellationToken::new();
    let dumper = Dump::new(server.at("shop", ""));
    let backup = Backup::builder().repository(repository).dumper(dumper).build().unwrap();
    let stop = cancel.clone();
    let work = async move { backup.run(&stop).await.map(drop) };
    cancelled_when(&server, WAITS, work, cancel).await;
    server.assert_undisturbed(&started).await;
    assert_eq!(support::left(&memory), ["pgark.json"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_restore_leaves_no_pg_restore_there() {
    if left_out("docker") {
        return;
    }
    let server = Alone::start(17).await;
    // In any other database the index takes ten minutes.
    let slow = "CREATE FUNCTION slow(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS \
                $$BEGIN IF current_database() <> 'shop' THEN PERFORM pg_catalog.pg_sleep(600); END IF; RETURN $1; END$$; \
                CREATE TABLE t AS SELECT 1 AS x; CREATE INDEX ON t (slow(x))";
    server.connect("shop").await.rows(slow).await.unwrap();
    let (repository, _) = memory_repository().await;
    let summary = back_up(&repository, server.at("shop", ""), Tools::installed()).await.unwrap();
    // An empty database that is there is kept, so that it is pgark that ends the session.
    server.connect("postgres").await.rows("CREATE DATABASE copy").await.unwrap();
    let started = server.started().await;
    let cancel = CancellationToken::new();
    let (to, stop) = (server.at("copy", ""), cancel.clone());
    let work = async move { restore(&repository, &summary, to, &stop).await };
    let sleeps = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    cancelled_when(&server, sleeps, work, cancel).await;
    server.assert_undisturbed(&started).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pg_dump_that_is_killed_there_is_a_failed_backup() {
    if left_out("docker") {
        return;
    }
    let server = Alone::start(17).await;
    let held = server.at("shop", "application_name=held").connect().await.unwrap();
    held.rows("CREATE TABLE t AS SELECT 1 AS x").await.unwrap();
    held.rows("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let started = server.started().await;
    let (repository, memory) = memory_repository().await;
    let connection = server.at("shop", "");
    let work = tokio::spawn(async move { back_up(&repository, connection, Tools::installed()).await });
    let session = server.connect("postgres").await;
    while session.rows(WAITS).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(session);
    server.sh("for p in /proc/[0-9]*; do [ \"$(cat $p/comm 2>/dev/null)\" = pg_dump ] && kill -9 ${p#/proc/}; done; true");
    let error = work.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ToolFailed, "{error:?}");
    assert!(error.to_string().contains("was killed by signal 9"), "{error:?}");
    server.assert_undisturbed(&started).await;
    assert_eq!(support::left(&memory), ["pgark.json"]);
}

async fn stage(tool: &Tool, files: &[(&str, &[u8])]) -> Staged {
    let staged = tool.stage().await.unwrap();
    for (name, bytes) in files {
        staged.file(name, |to| to.write_all(bytes)).await.unwrap();
    }
    staged
}

#[tokio::test(flavor = "multi_thread")]
async fn small_files_are_put_beside_the_tool_and_removed() {
    let here = conninfo("user=postgres");
    let large: Vec<u8> = (0..3_000_000_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let files = [("toc.dat", &large[..]), ("list", b"1; 2 TABLE\n".as_slice()), ("empty", b"")];

    let tool = Tools::installed().find_for("pg_restore", 15, &here).await.unwrap();
    let staged = stage(&tool, &files).await;
    let path = staged.path().to_owned();
    assert_eq!(std::fs::read(path.join("toc.dat")).unwrap(), large);
    staged.remove().await.unwrap();
    assert!(!path.exists());
    let outside = tool.stage().await.unwrap().file("../x", |_| Ok(())).await;
    assert_eq!(outside.unwrap_err().kind(), ErrorKind::Internal);
    if left_out("docker") {
        return;
    }

    let server = Alone::start(17).await;
    let connection = server.at("shop", "");
    let tool = Tools::installed().find_for("pg_restore", 17, &connection).await.unwrap();
    assert_eq!(tool.path.to_str(), Some("/usr/lib/postgresql/17/bin/pg_restore"));
    let staged = stage(&tool, &files).await;
    let path = staged.path().display().to_string();
    assert_eq!(
        server.sh(&format!("cd {path} && ls && stat -c %a . list && wc -c < toc.dat && cat list")),
        "empty\nlist\ntoc.dat\n700\n600\n3000000\n1; 2 TABLE"
    );
    let sum = server.sh(&format!("sha256sum {path}/toc.dat"));
    let local = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(local.path(), &large).unwrap();
    let own = Command::new("sha256sum").arg(local.path()).output().unwrap();
    assert_eq!(sum.split(' ').next(), String::from_utf8_lossy(&own.stdout).split(' ').next());
    staged.remove().await.unwrap();
    assert!(!server.try_sh(&format!("test -e {path}")).status.success());

    // Dropped, it is removed soon after.
    let staged = stage(&tool, &files).await;
    let path = staged.path().display().to_string();
    assert!(server.try_sh(&format!("test -e {path}")).status.success());
    drop(staged);
    let begun = Instant::now();
    while server.try_sh(&format!("test -e {path}")).status.success() {
        assert!(begun.elapsed() < Duration::from_secs(10), "the folder is left");
    }

    // Where it cannot be written, the words of there are told, and nothing is left.
    server.sh("mv /tmp /tmp.away");
    let error = tool.stage().await.unwrap_err();
    server.sh("mv /tmp.away /tmp");
    assert!(words(&error).contains("mktemp"), "{error:?}");
}
