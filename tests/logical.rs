//! Logical backups bring everything back: definitions and rows, in every encoding, of every version.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use pgark::event::Silent;
use pgark::logical::{Dump, Selection};
use pgark::postgres::Tools;
use support::round_trip::{assert_same_lines, back_up, pg_dump, try_back_up};
use support::{connect, conninfo, containers, fingerprint, left_out, server, sql};

const EVERYTHING: &str = include_str!("support/everything.sql");
const ROLES: &str = "CREATE ROLE reader; CREATE ROLE \"own er\"; GRANT reader TO \"own er\"";

/// An extension with tables that its users fill, of which some rows are its own, and which refer to each other.
const EXTENSION: &str = r"
folder=$(pg_config --sharedir)/extension
cat > $folder/configured.control <<E
default_version = '1'
schema = public
E
cat > $folder/configured--1.sql <<E
CREATE TABLE z_kinds (kind text PRIMARY KEY, own bool DEFAULT false);
CREATE TABLE a_things (id serial PRIMARY KEY, kind text REFERENCES z_kinds);
CREATE TABLE not_kept (x int);
INSERT INTO z_kinds VALUES ('built in', true);
INSERT INTO a_things (kind) VALUES ('built in');
SELECT pg_catalog.pg_extension_config_dump('z_kinds', 'WHERE NOT own');
SELECT pg_catalog.pg_extension_config_dump('a_things', 'WHERE id > 1');
SELECT pg_catalog.pg_extension_config_dump('a_things_id_seq', '');
E
";
const CONFIGURED: &str = "CREATE EXTENSION configured; INSERT INTO z_kinds VALUES ('mine'), ('yours'); \
     INSERT INTO a_things (kind) SELECT 'mine' FROM generate_series(1, 10); INSERT INTO not_kept VALUES (1)";

async fn there_and_back(source: &str, target: &str, tools: Tools, major: u32, selection: Selection) {
    let dump = Dump::new(conninfo(source)).tools(tools.clone()).selection(selection).range_bytes(256 * 1024);
    let backup = back_up(dump, 3).await;
    backup.restore(target, tools.clone()).await;
    assert_same_lines(&pg_dump(&tools, major, source, &[]), &pg_dump(&tools, major, target, &[]));
}

async fn in_container(major: u32) {
    if left_out("docker") {
        return;
    }
    let container = containers::start(major).await;
    container.script(EXTENSION);
    let postgres = connect(&container.url("postgres")).await;
    postgres.rows(ROLES).await.unwrap();
    postgres.rows("CREATE DATABASE source TEMPLATE template0").await.unwrap();
    let source = container.url("source");
    connect(&source).await.rows(EVERYTHING).await.unwrap();
    connect(&source).await.rows(CONFIGURED).await.unwrap();
    let tools = || Tools::in_folder(containers::tools(major));
    there_and_back(&source, &container.url("copy"), tools(), major, Selection::default()).await;
    let mut through_roots = Selection::default();
    through_roots.load_via_partition_root = true;
    there_and_back(&source, &container.url("through_roots"), tools(), major, through_roots).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_back_15() {
    in_container(15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_back_17() {
    in_container(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_back_18() {
    in_container(18).await;
}

/// Names and rows in encodings that are not UTF-8, and of which one knows no characters at all.
#[tokio::test(flavor = "multi_thread")]
async fn every_encoding_comes_back() {
    let server = server();
    let tools = Tools::installed();
    for (encoding, name, text) in [
        ("LATIN1", &b"caf\xe9 \xfc"[..], &b"na\xefve \xff"[..]),
        ("SQL_ASCII", b"caf\xe9", b"\xff\xfe\x80 not UTF-8"),
        ("EUC_JP", b"\xc6\xfc\xcb\xdc", b"\xb8\xec"),
        ("WIN1251", b"\xef\xf0\xe8\xe2\xe5\xf2", b"\xec\xe8\xf0"),
    ] {
        let (source, copy) = (format!("s_{encoding}"), format!("c_{encoding}"));
        let create =
            format!("CREATE DATABASE \"{source}\" TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'");
        sql(&server, "postgres", &create).await;
        let mut session = connect(&server.url(&source)).await.copy_session().await.unwrap();
        session.rows(format!("SET client_encoding = '{encoding}'")).await.unwrap();
        let fill = |template: &str| {
            let mut sql = Vec::new();
            for piece in template.split_inclusive(['@', '#']) {
                sql.extend(piece.trim_end_matches(['@', '#']).as_bytes());
                sql.extend(if piece.ends_with('@') { name } else { &[] });
                sql.extend(if piece.ends_with('#') { text } else { &[] });
            }
            sql
        };
        let schema = fill(
            "CREATE SCHEMA \"@\"; CREATE TYPE \"@\".\"t @\" AS ENUM ('#', '@');
             CREATE TABLE \"@\".\"t@\" (\"c @\" text DEFAULT '#', e \"@\".\"t @\", \"2@\" int PRIMARY KEY);
             INSERT INTO \"@\".\"t@\" SELECT '#' || i, (ARRAY['#', '@']::\"@\".\"t @\"[])[1 + i % 2], i FROM generate_series(1, 20000) i;
             CREATE TABLE \"small @\" AS SELECT '#'::text AS \"@\"; COMMENT ON TABLE \"small @\" IS '#';
             SELECT lo_from_bytea(77, '#')",
        );
        session.rows(schema).await.unwrap();
        for (jobs, range) in [(1, 64 << 20), (3, 64 << 10)] {
            let backup = back_up(Dump::new(conninfo(&server.url(&source))).range_bytes(range), jobs).await;
            let target = server.url(&copy);
            let restored =
                backup.try_restore(pgark::logical::Load::into(conninfo(&target)), jobs).await.unwrap();
            assert_eq!(restored.target["created"], true);
            let (source, copied) =
                (pg_dump(&tools, 15, &server.url(&source), &[]), pg_dump(&tools, 15, &target, &[]));
            assert_same_lines(&source, &copied);
            assert!(source.iter().any(|line| line.windows(text.len()).any(|bytes| bytes == text)));
            // Statistics are there as well, of a table whose name is no UTF-8.
            let unknown = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace <> 11 AND relname !~ '^sql_' AND reltuples < 1";
            assert_eq!(sql(&server, &copy, unknown).await, [[Some("0".to_owned())]]);
            sql(&server, "postgres", &format!("DROP DATABASE \"{copy}\"")).await;
        }
    }
}

/// A table that one session reads is stored in chunks, cut between rows of any length; two sessions read it through and
/// its end. Sessions of a restore share it, and its indexes, those of small tables and statistics are made beside each
/// other.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_table_is_read_by_few_sessions_and_loaded_by_several() {
    let server = server();
    sql(&server, "postgres", "CREATE DATABASE source").await;
    let source = connect(&server.url("source")).await;
    source
        .rows(
            "CREATE TABLE large (id int, note text);
             INSERT INTO large SELECT i, repeat(CASE WHEN i % 20000 = 0 THEN 'y' ELSE md5(i::text) END,
                 CASE WHEN i % 20000 = 0 THEN 3000000 ELSE 40 END) FROM generate_series(1, 60000) i;
             ALTER TABLE large ADD PRIMARY KEY (id);
             CREATE INDEX ON large (md5(note)); CREATE UNIQUE INDEX ON large (id, md5(note));
             CREATE TABLE small (id int PRIMARY KEY, large int REFERENCES large);
             INSERT INTO small SELECT i, i FROM generate_series(1, 100) i; CREATE INDEX ON small (large);
             CREATE TABLE nothing (id int PRIMARY KEY)",
        )
        .await
        .unwrap();
    for sessions in [1, 2] {
        let backup = back_up(Dump::new(conninfo(&server.url("source"))), sessions).await;
        let contents = backup.contents().await;
        let large = contents.databases[0].tables.iter().find(|table| table.name == "large").unwrap();
        assert_eq!((large.rows, large.chunks.iter().map(|chunk| chunk.rows).sum::<u64>()), (60000, 60000));
        let bytes: Vec<u64> = large.chunks.iter().map(|chunk| chunk.bytes).collect();
        let is_whole = |bytes: &u64| (32 << 20..36 << 20).contains(bytes);
        let (last, others) = bytes.split_last().unwrap();
        assert!(*last < 33 << 20, "{bytes:?}");
        // Each session ends with what is left.
        let left = others.iter().filter(|bytes| !is_whole(bytes)).collect::<Vec<_>>();
        assert!(
            others.len() >= 2 && left.len() < sessions && left.iter().all(|bytes| **bytes < 33 << 20),
            "{bytes:?}"
        );
        for jobs in [2, 5] {
            let target = server.url(&format!("copy_{sessions}_{jobs}"));
            backup.try_restore(pgark::logical::Load::into(conninfo(&target)), jobs).await.unwrap();
            let copy = connect(&target).await;
            assert_eq!(fingerprint(&source).await, fingerprint(&copy).await);
            let definitions = |url: &str| pg_dump(&Tools::installed(), 15, url, &["--schema-only"]);
            assert_same_lines(&definitions(&server.url("source")), &definitions(&target));
            let not_analyzed =
                "SELECT relname FROM pg_stat_user_tables WHERE last_analyze IS NULL OR analyze_count <> 1";
            assert_eq!(copy.rows(not_analyzed).await.unwrap(), Vec::<Vec<Option<String>>>::new());
        }
    }
}

/// Settings of the database, of the user and of the server that change how values are written.
#[tokio::test(flavor = "multi_thread")]
async fn settings_do_not_change_what_is_read() {
    let server = server();
    sql(&server, "postgres", "CREATE DATABASE source").await;
    sql(&server, "postgres", "CREATE ROLE other SUPERUSER LOGIN; CREATE ROLE reader; CREATE ROLE \"own er\"; GRANT reader TO \"own er\"").await;
    sql(&server, "source", EVERYTHING).await;
    let plain = pg_dump(&Tools::installed(), 15, &server.url("source"), &[]);
    for setting in [
        "DateStyle = 'German, DMY'",
        "IntervalStyle = sql_standard",
        "bytea_output = escape",
        "extra_float_digits = -10",
        "TimeZone = 'Asia/Kathmandu'",
        "standard_conforming_strings = off",
        "search_path = 'nowhere'",
        "default_transaction_read_only = on",
        "row_security = off",
        "lc_messages = 'C'",
        "statement_timeout = '1h'",
        "default_table_access_method = heap",
        "xmloption = document",
        "array_nulls = off",
        "quote_all_identifiers = on",
        "default_transaction_isolation = serializable",
        "default_transaction_deferrable = on",
        "check_function_bodies = on",
        "idle_session_timeout = '1s'",
        "idle_in_transaction_session_timeout = '1s'",
    ] {
        let target = if setting.contains("read_only") { "source" } else { "other" };
        if target == "source" {
            sql(&server, "postgres", &format!("ALTER DATABASE source SET {setting}")).await;
        } else {
            sql(&server, "postgres", &format!("ALTER ROLE other SET {setting}")).await;
        }
    }
    let as_other = |name: &str| format!("host={} user=other dbname={name}", server.folder().display());
    let backup = back_up(Dump::new(conninfo(&as_other("source"))).range_bytes(128 << 10), 2).await;
    backup.restore(&as_other("copy"), Tools::installed()).await;
    assert_same_lines(&plain, &pg_dump(&Tools::installed(), 15, &server.url("copy"), &[]));
}

/// A reader of everything reads everything that it may, and the rest is counted; hidden rows are an error.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_all_data_is_enough() {
    let server = server();
    sql(&server, "postgres", "CREATE DATABASE source").await;
    sql(
        &server,
        "source",
        "CREATE ROLE backup LOGIN; GRANT pg_read_all_data TO backup;
         CREATE TABLE t AS SELECT i FROM generate_series(1, 1000) i; CREATE SCHEMA s; CREATE TABLE s.u AS SELECT 1 AS one;
         CREATE SEQUENCE q; SELECT nextval('q'); SELECT lo_from_bytea(9, 'nine');
         CREATE EXTENSION postgres_fdw; CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw;
         CREATE USER MAPPING FOR postgres SERVER far OPTIONS (user 'u', password 'p')",
    )
    .await;
    let subscription =
        "CREATE SUBSCRIPTION follows CONNECTION 'host=/nonexistent' PUBLICATION p WITH (connect = false)";
    sql(&server, "source", subscription).await;
    let as_reader = format!("host={} user=backup dbname=source", server.folder().display());
    let backup = back_up(Dump::new(conninfo(&as_reader)), 2).await;
    let database = backup.contents().await.databases.remove(0);
    let left: Vec<_> = database.left_out.iter().map(|left| (left.what.as_str(), left.count)).collect();
    assert_eq!(left, [("subscriptions", 1), ("options of user mappings", 1)]);
    for word in ["left out: 1 subscriptions", "left out: 1 options of user mappings"] {
        assert!(backup.summary.warnings.iter().any(|w| w.contains(word)), "{:?}", backup.summary.warnings);
    }
    backup.restore(&server.url("copy"), Tools::installed()).await;
    let sums = "SELECT (SELECT sum(i) FROM t), (SELECT one FROM s.u), (SELECT last_value FROM q), lo_get(9)";
    assert_eq!(sql(&server, "source", sums).await, sql(&server, "copy", sums).await);

    sql(
        &server,
        "source",
        "CREATE TABLE hidden AS SELECT 1 AS i; ALTER TABLE hidden ENABLE ROW LEVEL SECURITY",
    )
    .await;
    let (_, memory, summary) = try_back_up(Dump::new(conninfo(&as_reader)), 2, Arc::new(Silent)).await;
    let error = summary.unwrap_err();
    assert!(
        error.to_string().contains("public.hidden") && error.hint().unwrap().contains("BYPASSRLS"),
        "{error:?}"
    );
    assert_eq!(support::left(&memory), ["pgark.json"]);
}

/// A standby is read as its primary; what it does not have is counted.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_dumped() {
    let primary = server();
    let schema = "CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 20000) i; CREATE UNLOGGED TABLE u AS SELECT 1 AS one";
    sql(&primary, "postgres", schema).await;
    let folder = support::physical::folder_for(&primary, "standby");
    let place = folder.join("data").display().to_string();
    let socket = primary.folder().display().to_string();
    support::physical::as_owner(
        &primary,
        "pg_basebackup",
        &["-D", &place, "-h", &socket, "-U", "postgres", "-c", "fast", "-R"],
    );
    let standby = primary.start_on(std::path::Path::new(&place)).unwrap();
    let backup = back_up(Dump::new(conninfo(&standby.url("postgres"))).range_bytes(256 << 10), 2).await;
    let database = backup.contents().await.databases.remove(0);
    assert_eq!(database.left_out.len(), 1);
    assert_eq!(
        (database.left_out[0].what.as_str(), database.left_out[0].count),
        ("rows of unlogged tables", 1)
    );
    backup.restore(&primary.url("copy"), Tools::installed()).await;
    let sums = "SELECT count(*), sum(i), sum(hashtext(md5)) FROM t";
    assert_eq!(sql(&primary, "postgres", sums).await, sql(&primary, "copy", sums).await);
    assert_eq!(sql(&primary, "copy", "SELECT count(*) FROM u").await, [[Some("0".to_owned())]]);
}

/// Values of a hundred megabytes, and a large object that is mostly a hole.
#[tokio::test(flavor = "multi_thread")]
async fn large_values_come_back() {
    let server = server();
    sql(
        &server,
        "postgres",
        "CREATE TABLE large (id int, t text, b bytea);
         INSERT INTO large SELECT 1, string_agg(md5(i::text), E'\\n'), NULL FROM generate_series(1, 3200000) i;
         INSERT INTO large SELECT 2, 'small', decode(replace(t, E'\\n', ''), 'hex') || decode(replace(t, E'\\n', ''), 'hex') FROM large;
         SELECT lo_create(5); SELECT lo_put(5, 300000000, 'the end')",
    )
    .await;
    let backup = back_up(Dump::new(conninfo(&server.url("postgres"))), 2).await;
    assert_eq!(backup.contents().await.databases[0].large_objects.clone().unwrap().bytes, 300_000_007);
    backup.restore(&server.url("copy"), Tools::installed()).await;
    let sums = "SELECT id, length(t), md5(t), length(b), md5(b) FROM large ORDER BY id";
    assert_eq!(sql(&server, "postgres", sums).await, sql(&server, "copy", sums).await);
    let end =
        "SELECT right(encode(lo_get(5, 299999990, 100), 'escape'), 7), length(lo_get(5, 299999990, 100))";
    assert_eq!(sql(&server, "copy", end).await, [[Some("the end".to_owned()), Some("17".to_owned())]]);
}

/// More tables than there is room for locks of two sessions at once.
#[tokio::test(flavor = "multi_thread")]
async fn many_tables_and_few_locks() {
    let server = server();
    let tables = "SELECT count(*) FROM pg_class WHERE relname ~ '^t[0-9]'";
    let make = "DO $$ BEGIN FOR i IN 1..100 LOOP EXECUTE format('CREATE TABLE t%s AS SELECT %s AS i', BASE + i, i); END LOOP; END $$";
    for hundred in 0..35 {
        sql(&server, "postgres", &make.replace("BASE", &(hundred * 100).to_string())).await;
    }
    assert_eq!(sql(&server, "postgres", tables).await, [[Some("3500".to_owned())]]);
    let backup = back_up(Dump::new(conninfo(&server.url("postgres"))), 2).await;
    assert_eq!(backup.contents().await.databases[0].tables.len(), 3500);
    let parts = backup.memory.keys().iter().filter(|key| key.contains("/parts/")).count();
    assert!(parts < 6, "{parts} parts for tables that fit into one");
    // Others have locks as well, and there is no room for them and us.
    for hundred in 35..90 {
        sql(&server, "postgres", &make.replace("BASE", &(hundred * 100).to_string())).await;
    }
    let (_, memory, summary) =
        try_back_up(Dump::new(conninfo(&server.url("postgres"))), 2, Arc::new(Silent)).await;
    let error = summary.unwrap_err();
    assert!(error.hint().unwrap().contains("max_locks_per_transaction"), "{error:?}");
    assert_eq!(support::left(&memory), ["pgark.json"]);
}

/// A pooler that gives each transaction another session is refused; one that gives each client its own is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_in_transaction_mode_is_refused() {
    if left_out("pgbouncer") {
        return;
    }
    let server = server();
    sql(&server, "postgres", "CREATE TABLE t AS SELECT i FROM generate_series(1, 1000) i").await;
    let socket = server.folder().display().to_string();
    let folder = support::physical::folder_for(&server, "pooler");
    for mode in ["transaction", "session"] {
        let port = support::free_port();
        let place = folder.join(format!("{mode}.ini"));
        let settings = format!(
            "[databases]\n* = host={socket} port=5432 user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = any\npool_mode = {mode}\nignore_startup_parameters = extra_float_digits\n\
             pidfile = {}\n",
            folder.join(format!("{mode}.pid")).display()
        );
        std::fs::write(&place, settings).unwrap();
        let mut pooler = std::process::Command::new("pgbouncer");
        pooler.arg("-q").arg(&place).env("PATH", "/usr/sbin:/usr/bin:/bin").current_dir("/");
        if rustix::process::geteuid().is_root() {
            use std::os::unix::fs::MetadataExt;
            use std::os::unix::process::CommandExt;
            let owner = server.data().metadata().unwrap();
            pooler.uid(owner.uid()).gid(owner.gid());
        }
        let mut pooler = pooler.spawn().unwrap();
        let url = format!("postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable");
        support::until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok(), "the pooler listens")
            .await;
        let (_, memory, summary) = try_back_up(Dump::new(conninfo(&url)), 2, Arc::new(Silent)).await;
        pooler.kill().unwrap();
        pooler.wait().unwrap();
        if mode == "session" {
            summary.unwrap();
            continue;
        }
        let error = summary.unwrap_err();
        assert_eq!(error.kind(), pgark::ErrorKind::Unsupported, "{error:?}");
        assert!(
            error.to_string().contains("pooler") && error.hint().unwrap().contains("session mode"),
            "{error:?}"
        );
        assert_eq!(support::left(&memory), ["pgark.json"]);
    }
}
