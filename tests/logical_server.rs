//! Backups of whole servers: every database and the globals, compared with `pg_dumpall` after a restore.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use backup_storage::conformance::{Fault, Faulty};
use pgark::logical::{ServerDump, ServerLoad};
use pgark::postgres::{ConnInfo, Session, TempServer, Tools};
use pgark::repository::{BackupRecord, Catalog, ClusterName};
use pgark::retention::KeepLast;
use pgark::{
    Backup, CancellationToken, ErrorKind, Event, Observer, Repository, Restore, Result, RetentionPolicy,
    Summary,
};
use support::{connect, conninfo, containers, left_out, memory_repository, sample, server, server_with, sql};

/// The odd name as SQL and in a connection string.
const ODD: &str = r#""odd ""x'\ = y""#;
const ODD_SETTING: &str = r#"dbname='odd "x\'\\ = y'"#;

/// Roles, settings, privileges and three databases. What fails in a transaction with others stands alone.
fn statements(tablespace: &Path) -> Vec<String> {
    let fixed = [
        "CREATE ROLE grp",
        "CREATE ROLE mid CREATEROLE",
        "CREATE ROLE \"Bob; 'x\" LOGIN PASSWORD 'bob''s secret' CONNECTION LIMIT 7 VALID UNTIL '2031-01-01 00:00+00'",
        "GRANT grp TO mid WITH ADMIN OPTION",
        "SET ROLE mid; GRANT grp TO \"Bob; 'x\"; RESET ROLE",
        "ALTER ROLE \"Bob; 'x\" SET work_mem = '7MB'",
        "ALTER ROLE mid SET search_path = 'a', '$user', 'b;c'",
        "COMMENT ON ROLE mid IS 'in; the \\ middle'",
        "GRANT SET ON PARAMETER log_statement TO mid",
        "CREATE DATABASE latin OWNER \"Bob; 'x\" TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'",
        "CREATE DATABASE empty CONNECTION LIMIT 9",
        "ALTER DATABASE latin SET default_transaction_read_only = on",
        "ALTER DATABASE empty SET work_mem = '9MB'",
        "REVOKE CONNECT ON DATABASE latin FROM public",
        "GRANT CONNECT ON DATABASE latin TO grp WITH GRANT OPTION",
        "COMMENT ON DATABASE latin IS 'it''s latin'",
        "ALTER DATABASE postgres SET statement_timeout = '77s'",
        "GRANT CREATE ON DATABASE postgres TO mid",
        "CREATE DATABASE closed ALLOW_CONNECTIONS false",
    ];
    let mut all: Vec<String> = fixed.map(str::to_owned).to_vec();
    all.extend([
        format!("CREATE TABLESPACE \"fast; one\" OWNER mid LOCATION '{}'", tablespace.display()),
        "ALTER TABLESPACE \"fast; one\" SET (random_page_cost = 1.5)".to_owned(),
        "GRANT CREATE ON TABLESPACE \"fast; one\" TO grp".to_owned(),
        format!("CREATE DATABASE {ODD} OWNER mid TABLESPACE \"fast; one\" IS_TEMPLATE true"),
        format!("ALTER ROLE \"Bob; 'x\" IN DATABASE {ODD} SET search_path = 'a', 'b'"),
        format!("ALTER DATABASE {ODD} SET \"my.odd\" = E'va\\\\l;ue''s'"),
    ]);
    all
}

async fn fill(admin: &Session, url: impl Fn(&str) -> String, tablespace: &Path) {
    for statement in statements(tablespace) {
        admin.rows(&statement).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    }
    let odd = connect(&url(ODD_SETTING)).await;
    odd.rows(&sample(3000)).await.unwrap();
    odd.rows("GRANT SELECT ON people TO grp; ALTER TABLE empty_table OWNER TO mid").await.unwrap();
    let latin = connect(&url("dbname=latin options='-c default_transaction_read_only=off'")).await;
    let table = "CREATE TABLE t AS SELECT 'café ' || i AS x FROM generate_series(1, 50) i";
    latin.rows(table).await.unwrap();
}

/// What `pg_dumpall` writes of a server, without what is random.
fn dumped(tools: &Path, url: &str) -> Vec<String> {
    let output = Command::new(tools.join("pg_dumpall"))
        .env("PGPASSWORD", "s3cret")
        .args(["-d", url])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .filter(|l| !l.starts_with("\\restrict") && !l.starts_with("\\unrestrict"))
        .map(str::to_owned)
        .collect()
}

fn assert_same(before: &[String], after: &[String]) {
    let (gone, new): (Vec<_>, Vec<_>) = (
        before.iter().filter(|line| !after.contains(line)).collect(),
        after.iter().filter(|line| !before.contains(line)).collect(),
    );
    assert!(before.len() > 100 && gone.is_empty() && new.is_empty(), "gone: {gone:#?}\nnew: {new:#?}");
    assert_eq!(before, after, "the order");
}

/// Keeps the warnings.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    fn observer(&self) -> Arc<dyn Observer> {
        let kept = Arc::clone(&self.0);
        Arc::new(move |event: &Event| {
            if let Event::Warning { message } = event {
                kept.lock().unwrap().push(message.clone());
            }
        })
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

async fn back_up(repository: &Repository, dump: ServerDump) -> Result<(Summary, BackupRecord)> {
    let backup = Backup::builder().repository(repository.clone()).dumper(dump).jobs(2).build().unwrap();
    let summary = backup.run(&CancellationToken::new()).await?;
    let record = repository.record(&ClusterName::default(), &summary.backup.id).await.unwrap();
    Ok((summary, record))
}

async fn restore(
    repository: &Repository,
    record: &BackupRecord,
    load: ServerLoad,
) -> (Result<pgark::Restored>, Vec<String>) {
    let warnings = Warnings::default();
    let restore = Restore::builder()
        .backup(repository.clone(), record.clone())
        .restorer(load)
        .jobs(2)
        .observer(warnings.observer())
        .build()
        .unwrap();
    (restore.run(&CancellationToken::new()).await, warnings.all())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_comes_back_as_pg_dumpall_sees_it() {
    let spaces = tempfile::tempdir_in("/tmp").unwrap();
    let space = spaces.path().join("fast");
    let source = server();
    let own_by = |server: &TempServer| {
        use std::os::unix::fs::MetadataExt;
        let owner = std::fs::metadata(server.data()).unwrap();
        std::fs::create_dir(&space).unwrap();
        std::os::unix::fs::chown(&space, Some(owner.uid()), Some(owner.gid())).unwrap();
    };
    std::fs::set_permissions(&spaces, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    own_by(&source);
    let base = |server: &TempServer| {
        format!("host={} port={} user=postgres", server.folder().display(), server.port())
    };
    let url = base(&source);
    fill(&connect(&source.url("postgres")).await, |database| format!("{url} {database}"), &space).await;
    let before = dumped(source.bin(), &format!("{url} dbname=postgres"));
    let (repository, _) = memory_repository().await;
    let (summary, record) = back_up(&repository, ServerDump::new(conninfo(&url))).await.unwrap();
    assert!(summary.backup.is_complete());
    assert_eq!(summary.warnings, ["left out: 1 databases (closed): they let nobody connect (datallowconn)"]);
    let facts = &summary.backup.source;
    assert_eq!(facts["databases"], serde_json::json!(["empty", "latin", "odd \"x'\\ = y", "postgres"]));
    assert_eq!((&facts["globals"], &facts["databases_left_out"]), (&"whole".into(), &1.into()));

    let mut closed: Vec<String> = before.clone();
    closed.retain(|line| !line.contains("closed"));
    drop(source);
    std::fs::remove_dir_all(&space).unwrap();
    let target = server();
    own_by(&target);
    let url = base(&target);
    let load = || ServerLoad::into(conninfo(&url)).globals(true);
    let (restored, warnings) = restore(&repository, &record, load()).await;
    let restored = restored.unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(restored.target["databases"].as_array().unwrap().len(), 4);
    assert_eq!(restored.target["globals"]["roles_kept"], serde_json::json!(["postgres"]));
    assert_same(&closed, &dumped(target.bin(), &format!("{url} dbname=postgres")));
    let place = "SELECT spcname FROM pg_database d JOIN pg_tablespace t ON t.oid = dattablespace WHERE datistemplate AND datname LIKE 'odd%'";
    assert_eq!(sql(&target, "postgres", place).await, [[Some("fast; one".to_owned())]]);

    // A second time nothing is changed: the databases are there, and nothing of the globals comes first.
    sql(&target, "postgres", "ALTER ROLE mid RENAME TO other").await;
    let (again, _) = restore(&repository, &record, load()).await;
    let again = again.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict, "{again:?}");
    assert!(again.to_string().contains("not empty: latin, odd \"x'\\ = y"), "{again:?}");
    assert!(sql(&target, "postgres", "SELECT 1 FROM pg_roles WHERE rolname = 'mid'").await.is_empty());
}

/// A user with rights to everything but the passwords, and two databases.
async fn modest(server: &TempServer) -> ConnInfo {
    for statement in [
        "CREATE ROLE modest LOGIN",
        "CREATE ROLE secretive LOGIN PASSWORD 'not for everybody'",
        "CREATE DATABASE one OWNER modest",
        "CREATE DATABASE two OWNER modest",
    ] {
        sql(server, "postgres", statement).await;
    }
    for database in ["one", "two"] {
        let rows =
            "SET ROLE modest; CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 2000) i";
        sql(server, database, rows).await;
    }
    conninfo(&format!("host={} port={} user=modest", server.folder().display(), server.port()))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_read_passwords_is_told_and_gets_the_rest() {
    let source = server();
    let connection = modest(&source).await;
    let (repository, _) = memory_repository().await;
    let (summary, record) = back_up(&repository, ServerDump::new(connection)).await.unwrap();
    assert!(summary.backup.is_complete());
    assert_eq!(summary.backup.source["globals"], "without passwords");
    assert_eq!(summary.warnings.len(), 1, "{:?}", summary.warnings);
    assert!(summary.warnings[0].contains("modest may not read pg_authid"), "{:?}", summary.warnings);

    let target = server();
    let (restored, _) =
        restore(&repository, &record, ServerLoad::into(target.conninfo("postgres").unwrap()).globals(true))
            .await;
    restored.unwrap();
    let login = "SELECT rolcanlogin, rolpassword IS NULL FROM pg_authid WHERE rolname = 'secretive'";
    assert_eq!(sql(&target, "postgres", login).await, [[Some("t".to_owned()), Some("t".to_owned())]]);
    let rows = sql(
        &target,
        "two",
        "SELECT count(*), pg_get_userbyid(datdba) FROM t, pg_database WHERE datname = 'two' GROUP BY 2",
    )
    .await;
    assert_eq!(rows, [[Some("2000".to_owned()), Some("modest".to_owned())]]);
    // Without being told to, and not able to, are two things.
    let dump = ServerDump::new(source.conninfo("postgres").unwrap()).no_role_passwords(true);
    let (summary, _) = back_up(&repository, dump).await.unwrap();
    assert_eq!((&summary.backup.source["globals"], summary.warnings.len()), (&"without passwords".into(), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_fails_makes_the_backup_partial_and_the_rest_is_there() {
    let source = server();
    let connection = modest(&source).await;
    let (repository, _) = memory_repository().await;
    let dump = || ServerDump::new(connection.clone());
    let (whole, _) = back_up(&repository, dump()).await.unwrap();
    // It fails at its second table, when parts of it may be open; another one refuses from the beginning.
    sql(&source, "one", "CREATE TABLE hidden AS SELECT i, repeat(md5(i::text), 99) FROM generate_series(1, 3000) i; REVOKE ALL ON hidden FROM public").await;
    sql(&source, "postgres", "CREATE DATABASE three").await;
    sql(&source, "postgres", "REVOKE CONNECT ON DATABASE three FROM public").await;
    let (partial, record) = back_up(&repository, dump()).await.unwrap();
    assert!(whole.backup.is_complete() && !partial.backup.is_complete());
    let facts = &partial.backup.source;
    assert_eq!(
        (&facts["databases"], &facts["databases_failed"]),
        (&serde_json::json!(["postgres", "two"]), &serde_json::json!(["one", "three"]))
    );
    let said = partial.warnings.join("\n");
    assert!(said.contains("the database one is not in the backup") && said.contains("hidden"), "{said}");
    assert!(
        said.contains("the database three is not in the backup") && said.contains("may not connect"),
        "{said}"
    );

    let catalog = Catalog::load(&repository, &ClusterName::default()).await.unwrap();
    assert_eq!(catalog.backups().len(), 2);
    assert_eq!(catalog.find("latest").unwrap().id, whole.backup.id, "the last complete one");
    assert_eq!(catalog.find(partial.backup.id.as_str()).unwrap().id, partial.backup.id);
    let backups: Vec<_> = catalog.backups().cloned().collect();
    let kept: Vec<bool> =
        KeepLast(1).decide(&backups, jiff::Timestamp::now()).iter().map(|v| v.keep).collect();
    assert_eq!(kept, [true, true], "the partial one takes no place");
    let backups: Vec<_> = backups.into_iter().rev().collect();
    let kept: Vec<bool> =
        KeepLast(1).decide(&backups, jiff::Timestamp::now()).iter().map(|v| v.keep).collect();
    assert_eq!(kept, [false, true], "and goes when a complete one follows");

    let report = pgark::verify::verify(
        &repository,
        &record,
        pgark::verify::VerifyOptions::default(),
        &CancellationToken::new(),
    )
    .await
    .unwrap();
    assert!(report.is_good(), "{report:?}");
    let target = server();
    let into = || ServerLoad::into(target.conninfo("postgres").unwrap());
    let (restored, warnings) = restore(&repository, &record, into().globals(true)).await;
    assert_eq!(restored.unwrap().target["databases"], serde_json::json!(["postgres", "two"]));
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert_eq!(sql(&target, "two", "SELECT count(*) FROM t").await, [[Some("2000".to_owned())]]);
    let load = pgark::logical::Load::into(target.conninfo("one").unwrap()).database("one");
    let restore = Restore::builder().backup(repository, record).restorer(load).build().unwrap();
    let error = restore.run(&CancellationToken::new()).await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::NoDatabase && error.to_string().contains("its dump failed"),
        "{error:?}"
    );
}

/// Its sessions are ended in the middle of the rows: parts are open, and none of them may end the run.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_breaks_off_among_its_rows_leaves_the_others_alone() {
    let source = server();
    sql(&source, "postgres", "CREATE DATABASE a").await;
    sql(&source, "postgres", "CREATE DATABASE b").await;
    for database in ["a", "b"] {
        let rows =
            "CREATE TABLE big AS SELECT i, repeat(md5(i::text), 20) AS x FROM generate_series(1, 60000) i";
        sql(&source, database, rows).await;
    }
    let killed = Arc::new(Mutex::new(None));
    let (repository, _) = memory_repository().await;
    let observer = {
        let (killed, url) = (Arc::clone(&killed), source.url("b"));
        let psql = source.bin().join("psql");
        let in_a = Mutex::new(false);
        move |event: &Event| match event {
            Event::Step { what } if what.starts_with("dumping the ") => {
                *in_a.lock().unwrap() = what == "dumping the database a";
            }
            Event::Progress { raw_bytes, .. } if *in_a.lock().unwrap() && *raw_bytes > 8 << 20 => {
                let mut killed = killed.lock().unwrap();
                if killed.is_none() {
                    let end =
                        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = 'a'";
                    let done = Command::new(&psql).args(["-XAtc", end, &url]).output().unwrap();
                    *killed = Some(String::from_utf8(done.stdout).unwrap());
                }
            }
            _ => {}
        }
    };
    let backup = Backup::builder()
        .repository(repository.clone())
        .dumper(ServerDump::new(source.conninfo("postgres").unwrap()))
        .jobs(2)
        .observer(Arc::new(observer))
        .build()
        .unwrap();
    let summary = backup.run(&CancellationToken::new()).await.unwrap();
    let killed = killed.lock().unwrap().clone().unwrap();
    assert!(killed.trim().parse::<u32>().unwrap() >= 2, "sessions were ended: {killed}");
    assert_eq!(summary.backup.source["databases_failed"], serde_json::json!(["a"]));
    let record = repository.record(&ClusterName::default(), &summary.backup.id).await.unwrap();
    let target = server();
    let (restored, warnings) =
        restore(&repository, &record, ServerLoad::into(target.conninfo("postgres").unwrap())).await;
    restored.unwrap();
    assert!(
        warnings.len() == 1 && warnings[0].starts_with("the database a is not in the backup"),
        "{warnings:?}"
    );
    assert_eq!(sql(&target, "b", "SELECT count(*) FROM big").await, [[Some("60000".to_owned())]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_dropped_meanwhile_is_reported() {
    let source = server();
    let connection = modest(&source).await;
    let (repository, _) = memory_repository().await;
    let (psql, url) = (source.bin().join("psql"), source.url("postgres"));
    let observer = move |event: &Event| {
        if matches!(event, Event::Step { what } if what == "dumping the database one") {
            let done = Command::new(&psql).args(["-Xc", "DROP DATABASE two", &url]).status().unwrap();
            assert!(done.success());
        }
    };
    let backup = Backup::builder()
        .repository(repository)
        .dumper(ServerDump::new(connection))
        .observer(Arc::new(observer));
    let summary = backup.build().unwrap().run(&CancellationToken::new()).await.unwrap();
    assert_eq!(summary.backup.source["databases_failed"], serde_json::json!(["two"]));
    assert!(
        summary.warnings.iter().any(|w| w.contains("there is no database two")),
        "{:?}",
        summary.warnings
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_that_exist_keep_what_they_have_and_every_failure_is_told() {
    let source = server();
    for statement in [
        "CREATE ROLE app SUPERUSER LOGIN PASSWORD 'from the backup'",
        "CREATE ROLE new LOGIN PASSWORD 'new one'",
        "GRANT app TO new",
        "ALTER ROLE postgres PASSWORD 'another'",
        "ALTER ROLE app SET work_mem = '3MB'",
    ] {
        sql(&source, "postgres", statement).await;
    }
    let space = tempfile::tempdir_in("/tmp").unwrap();
    let owner = std::fs::metadata(source.data()).unwrap();
    std::os::unix::fs::chown(space.path(), Some(std::os::unix::fs::MetadataExt::uid(&owner)), None).unwrap();
    sql(&source, "postgres", &format!("CREATE TABLESPACE gone LOCATION '{}'", space.path().display())).await;
    let (repository, _) = memory_repository().await;
    let (_, record) =
        back_up(&repository, ServerDump::new(source.conninfo("postgres").unwrap())).await.unwrap();
    drop(source);
    drop(space);

    let options = {
        let mut options = pgark::postgres::TempServerOptions::default();
        options.settings = vec!["log_statement = 'all'".to_owned(), "lc_messages = 'C'".to_owned()];
        options
    };
    let target = server_with(&options);
    sql(&target, "postgres", "CREATE ROLE app LOGIN PASSWORD 'its own'").await;
    let own =
        "SELECT rolsuper, rolpassword FROM pg_authid WHERE rolname IN ('app', 'postgres') ORDER BY rolname";
    let before = sql(&target, "postgres", own).await;
    let load = ServerLoad::into(target.conninfo("postgres").unwrap()).globals_only();
    let (restored, warnings) = restore(&repository, &record, load).await;
    let error = restored.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Partial, "{error:?}");
    let said = format!("{error:?} {warnings:?}");
    assert!(said.contains("CREATE TABLESPACE gone") && said.contains("does not exist"), "{said}");
    assert!(!said.contains("SCRAM"), "{said}");
    assert_eq!(sql(&target, "postgres", own).await, before, "neither attributes nor password");
    let new = "SELECT rolpassword LIKE 'SCRAM%', pg_has_role('new', 'app', 'member'), (SELECT setconfig FROM pg_db_role_setting) FROM pg_authid WHERE rolname = 'new'";
    let expected = ["t", "t", "{work_mem=3MB}"].map(|text| Some(text.to_owned()));
    assert_eq!(sql(&target, "postgres", new).await, [expected]);
    let log = std::fs::read_to_string(target.folder().join("log")).unwrap();
    assert!(
        log.contains("log_statement") && !log.contains("SCRAM-SHA-256$"),
        "the server's log has no verifier"
    );
}

async fn in_container(major: u32) {
    if left_out("docker") {
        return;
    }
    let (source, target) = tokio::join!(containers::start(major), containers::start(major));
    let folder = Path::new("/var/lib/postgresql/fast");
    let bin = containers::tools(major);
    for container in [&source, &target] {
        let admin = connect(&container.url("postgres")).await;
        admin.rows(&format!("COPY (SELECT 1) TO PROGRAM 'mkdir {} && cat'", folder.display())).await.unwrap();
        admin.rows("ALTER ROLE postgres SET client_min_messages = warning").await.unwrap();
    }
    let keyed = |container: &containers::PgContainer, database: &str| {
        let url = container.url("postgres");
        let (start, _) = url.rsplit_once('/').unwrap();
        let rest = start.trim_start_matches("postgresql://postgres:s3cret@");
        let (host, port) = rest.rsplit_once(':').unwrap();
        format!("host={host} port={port} user=postgres password=s3cret {database}")
    };
    fill(&connect(&source.url("postgres")).await, |database| keyed(&source, database), folder).await;
    let mut before = dumped(&bin, &source.url("postgres"));
    before.retain(|line| !line.contains("closed"));
    let (repository, _) = memory_repository().await;
    let tools = || Tools::in_folder(&bin);
    let dump = ServerDump::new(conninfo(&source.url("nowhere"))).tools(tools());
    let (_, record) = back_up(&repository, dump).await.unwrap();
    let load = ServerLoad::into(conninfo(&target.url("nowhere"))).tools(tools()).globals(true);
    let (restored, warnings) = restore(&repository, &record, load).await;
    restored.unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    let mut after = dumped(&bin, &target.url("postgres"));
    // The password of whoever restores stays the target's own: another verifier of the same one.
    for lines in [&mut before, &mut after] {
        lines.retain(|line| !line.starts_with("ALTER ROLE postgres WITH"));
    }
    assert_same(&before, &after);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_17_in_a_container() {
    in_container(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_18_in_a_container() {
    in_container(18).await;
}

/// Before 16 a grant may stand before the one that gives its grantor the right, and `pg_dumpall` of 15 writes it so.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_15_goes_into_18() {
    if left_out("docker") {
        return;
    }
    let source = server();
    for statement in [
        "CREATE ROLE grp",
        "CREATE ROLE mid",
        "CREATE ROLE bob",
        "CREATE ROLE gone_from_it SUPERUSER",
        "GRANT grp TO mid WITH ADMIN OPTION",
        "SET ROLE mid; GRANT grp TO bob; RESET ROLE",
        "SET ROLE gone_from_it; GRANT mid TO bob; RESET ROLE",
        "CREATE DATABASE shop OWNER mid",
        "GRANT CREATE ON DATABASE shop TO bob",
    ] {
        sql(&source, "postgres", statement).await;
    }
    sql(&source, "shop", &sample(100)).await;
    let (repository, _) = memory_repository().await;
    let bin = source.bin().to_owned();
    let dump = ServerDump::new(source.conninfo("postgres").unwrap()).tools(Tools::in_folder(bin));
    let (_, record) = back_up(&repository, dump).await.unwrap();
    let target = containers::start(18).await;
    let tools = Tools::in_folder(containers::tools(18));
    let load = ServerLoad::into(conninfo(&target.url("postgres"))).tools(tools).globals(true);
    let (restored, warnings) = restore(&repository, &record, load).await;
    restored.unwrap();
    // The image is made with another locale than the tests' servers.
    assert!(
        warnings.iter().all(|w| w.contains("the database postgres was there with another")),
        "{warnings:?}"
    );
    let members = "SELECT roleid::regrole, member::regrole, grantor::regrole, admin_option FROM pg_auth_members \
                   WHERE roleid > 16000";
    let mut found: Vec<String> = connect(&target.url("postgres"))
        .await
        .rows(members)
        .await
        .unwrap()
        .into_iter()
        .map(|row| row.into_iter().flatten().collect::<Vec<_>>().join(" "))
        .collect();
    found.sort();
    assert_eq!(found, ["grp bob mid f", "grp mid postgres t", "mid bob postgres f"]);
}

/// What ends the run is the run's error, and no database's.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_dies_leaves_no_partial_backup() {
    let source = server();
    let connection = modest(&source).await;
    let memory = pgark::MemoryTransport::new();
    let faulty = Faulty::new(memory, Fault::Slow(std::time::Duration::ZERO));
    let store = pgark::Remote::new(faulty.clone(), "memory", support::quick());
    let (repository, _) = Repository::init(Arc::new(store)).await.unwrap();
    let dying = faulty.clone();
    let observer = move |event: &Event| {
        if matches!(event, Event::Step { what } if what == "dumping the database two") {
            dying.set(Some(Fault::Dead));
        }
    };
    let backup = Backup::builder().repository(repository.clone()).dumper(ServerDump::new(connection));
    let backup = backup.observer(Arc::new(observer)).build().unwrap();
    let error = backup.run(&CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error:?}");
    faulty.set(None);
    assert_eq!(Catalog::load(&repository, &ClusterName::default()).await.unwrap().backups().len(), 0);
}
