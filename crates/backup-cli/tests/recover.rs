//! Tables as they were, out of backups into live databases.

#![allow(clippy::unwrap_used, missing_docs)]

mod host;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use host::{Host, archived, one, said};
use pgark::ErrorKind;
use pgark::postgres::TempServer;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::physical::folder_for;
use support::sql;

/// Tables of many kinds.
const TABLES: &str = "
  CREATE SCHEMA app;
  CREATE TYPE app.state AS ENUM ('new', 'paid', 'gone');
  CREATE TABLE app.customers (id int PRIMARY KEY, name text NOT NULL UNIQUE);
  INSERT INTO app.customers SELECT n, 'customer ' || n FROM generate_series(1, 500) n;
  CREATE TABLE app.bookings (id serial PRIMARY KEY, customer int NOT NULL REFERENCES app.customers, state app.state DEFAULT 'new',
    at timestamptz DEFAULT now(), note text, doubled int GENERATED ALWAYS AS (customer * 2) STORED, CHECK (customer > 0));
  CREATE INDEX ON app.bookings (customer, at);
  INSERT INTO app.bookings (customer, state, note) SELECT 1 + n % 500, 'paid', repeat('note ' || n, n % 20) FROM generate_series(1, 20000) n;
  CREATE TABLE app.documents (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text);
  ALTER TABLE app.documents ALTER body SET STORAGE EXTERNAL;
  INSERT INTO app.documents (body) SELECT repeat(md5(n::text), 200) FROM generate_series(1, 500) n;
  CREATE TABLE app.parts (id int, at date, note text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
  CREATE TABLE app.parts_a PARTITION OF app.parts FOR VALUES FROM ('2026-01-01') TO ('2026-07-01');
  CREATE TABLE app.parts_b (at date NOT NULL, note text, id int NOT NULL);
  ALTER TABLE app.parts ATTACH PARTITION app.parts_b FOR VALUES FROM ('2026-07-01') TO ('2027-01-01');
  INSERT INTO app.parts SELECT n, date '2026-01-01' + n % 365, 'part ' || n FROM generate_series(1, 3000) n;
  CREATE TABLE app.other (id int PRIMARY KEY, filler text);
  INSERT INTO app.other SELECT n, repeat(md5(n::text), 10) FROM generate_series(1, 60000) n;
  CREATE TABLE app.\"Odd \"\"name\" (\"a b\" int PRIMARY KEY, c numeric);
  INSERT INTO app.\"Odd \"\"name\" SELECT n, n / 7.0 FROM generate_series(1, 1000) n;
  CREATE TABLE app.vanishing AS SELECT n, 'x' || n AS v FROM generate_series(1, 4000) n;
  CREATE TABLE app.renamed_later (id int PRIMARY KEY, v text);
  INSERT INTO app.renamed_later SELECT n, md5(n::text) FROM generate_series(1, 5000) n;
";

/// Rows of a table and the sum over their contents.
async fn rows_of(server: &TempServer, table: &str, columns: &str) -> String {
    let sum =
        format!("SELECT count(*), sum(hashtextextended(t::text, 7)) FROM (SELECT {columns} FROM {table}) t");
    format!("{:?}", sql(server, "postgres", &sum).await[0])
}

/// Writes that go on until the value is dropped.
struct Busy(std::process::Child);

impl Busy {
    async fn begin(server: &TempServer) -> Self {
        let bench = |args: &[&str]| {
            let mut command = Command::new(server.bin().join("pgbench"));
            let folder = server.folder().display().to_string();
            command.args(["-h", &folder, "-U", "postgres"]).args(args).arg("postgres");
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
            command
        };
        if sql(server, "postgres", "SELECT to_regclass('pgbench_accounts')").await[0][0].is_none() {
            assert!(bench(&["-i", "-s", "2", "-q"]).status().unwrap().success());
        }
        Self(bench(&["-c", "2", "-T", "600", "-R", "300"]).spawn().unwrap())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn recovered(host: &Host, server: &TempServer, args: &[&str]) -> Value {
    let into = server.url("postgres");
    let work = host.place("work");
    let fixed = ["recover", "--into", &into, "--yes", "--work-dir", &work];
    let answer = host.json(&[&fixed[..], args].concat())["recovered"].clone();
    let left: Vec<_> = std::fs::read_dir(&work).into_iter().flatten().flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "{left:?} is left");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_as_they_were() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = host.server();
    let space = folder_for(&server, "space");
    sql(&server, "postgres", &format!("CREATE TABLESPACE space LOCATION '{}'", space.display())).await;
    sql(&server, "postgres", TABLES).await;
    let elsewhere = "CREATE TABLE app.elsewhere (n int PRIMARY KEY, v text) TABLESPACE space; \
                     INSERT INTO app.elsewhere SELECT n, md5(n::text) FROM generate_series(1, 5000) n";
    sql(&server, "postgres", elsewhere).await;
    let busy = Busy::begin(&server).await;
    host.back_up(&server);
    for change in [
        "UPDATE app.bookings SET note = 'changed' WHERE id % 7 = 0",
        "VACUUM FULL app.documents",
        "INSERT INTO app.documents (body) SELECT repeat(md5(n::text), 100) FROM generate_series(1, 100) n",
        "TRUNCATE app.elsewhere",
        "INSERT INTO app.elsewhere SELECT n, 'again' FROM generate_series(1, 700) n",
        "CREATE TABLE app.new_one AS SELECT n, md5(n::text) AS v FROM generate_series(1, 2000) n",
        "VACUUM FULL pg_class",
        "ALTER TABLE app.renamed_later RENAME TO renamed",
    ] {
        sql(&server, "postgres", change).await;
    }
    archived(&server).await;
    let tables = [
        ("app.customers", "id, name"),
        ("app.bookings", "id, customer, state, at, note"),
        ("app.documents", "id, body"),
        ("app.parts", "id, at, note"),
        ("app.\"Odd \"\"name\"", "\"a b\", c"),
        ("app.vanishing", "n, v"),
        ("app.elsewhere", "n, v"),
        ("app.new_one", "n, v"),
        ("app.renamed", "id, v"),
    ];
    let mut before = Vec::new();
    for (table, columns) in tables {
        before.push(rows_of(&server, table, columns).await);
    }
    let good = one(&server, "SELECT clock_timestamp()").await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    for mistake in [
        "DELETE FROM app.bookings WHERE id > 10000",
        "DROP TABLE app.vanishing",
        "TRUNCATE app.parts",
        "UPDATE app.documents SET body = ''",
        "DROP TABLE app.new_one",
        "DELETE FROM app.elsewhere",
    ] {
        sql(&server, "postgres", mistake).await;
    }
    archived(&server).await;
    let now = one(&server, "SELECT clock_timestamp()").await;
    sql(&server, "postgres", "CREATE TABLE marker ()").await;
    archived(&server).await;
    drop(busy);

    for ((table, columns), before) in tables.iter().zip(&before) {
        let answer = recovered(&host, &server, &["--table", table, "--as", "back", "--to-time", &good]);
        println!("{answer}");
        assert_eq!(rows_of(&server, "app.back", columns).await, *before, "{table}: {answer}");
        assert_eq!(answer["restored"], "tables", "{answer}");
        sql(&server, "postgres", "DROP TABLE app.back").await;
    }
    let answer = recovered(&host, &server, &["--table", "app.bookings", "--as", "back", "--to-time", &now]);
    assert_eq!(answer["rows"], 10000, "{answer}");
    // Under its own name, with its indexes and its sequence.
    sql(&server, "postgres", "DROP TABLE app.back; DROP TABLE app.bookings").await;
    let own = ["--table", "app.bookings", "--as", "bookings", "--to-time", &good];
    recovered(&host, &server, &own);
    assert_eq!(rows_of(&server, "app.bookings", tables[1].1).await, before[1]);
    let names = "SELECT string_agg(indexrelid::regclass::text, ' ' ORDER BY indexrelid::regclass::text) || ' ' || \
                 pg_get_serial_sequence('app.bookings', 'id') FROM pg_index WHERE indrelid = 'app.bookings'::regclass";
    let names = one(&server, names).await;
    assert_eq!(names, "app.bookings_customer_at_idx app.bookings_pkey app.bookings_id_seq");
}

/// What a whole restore has, and what `recover` makes of the increments of a chain.
#[tokio::test(flavor = "multi_thread")]
async fn a_chain_gives_what_a_whole_restore_gives() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = host.server();
    sql(&server, "postgres", TABLES).await;
    let busy = Busy::begin(&server).await;
    host.back_up(&server);
    for changes in [
        "UPDATE app.bookings SET note = 'changed' WHERE id % 7 = 0; DELETE FROM app.parts WHERE id < 500",
        "TRUNCATE app.documents; INSERT INTO app.documents (body) SELECT repeat(md5(n::text), 100) FROM generate_series(1, 90) n",
    ] {
        sql(&server, "postgres", changes).await;
        let made = host.back_up_with(&server, &["--incremental"]);
        assert!(made["parent"].is_string(), "{made}");
    }
    sql(&server, "postgres", "INSERT INTO app.bookings (customer) VALUES (7)").await;
    let lsn = one(&server, "SELECT pg_current_wal_insert_lsn()").await;
    sql(&server, "postgres", "DROP TABLE app.bookings; DROP TABLE app.documents; DROP TABLE app.parts").await;
    archived(&server).await;
    drop(busy);
    let whole = host.recover(&server, "whole", &["--to-lsn", &lsn]).await;
    for (table, columns) in [
        ("app.bookings", "id, customer, state, at, note"),
        ("app.documents", "id, body"),
        ("app.parts", "id, at, note"),
        ("public.pgbench_history", "tid, bid, aid, delta, mtime"),
    ] {
        let answer = recovered(&host, &server, &["--table", table, "--as", "back", "--to-lsn", &lsn]);
        let back = format!("{}.back", table.split('.').next().unwrap());
        assert_eq!(rows_of(&server, &back, columns).await, rows_of(&whole, table, columns).await, "{table}");
        assert!(answer["spared_bytes"].as_u64().unwrap() > 30_000_000, "{answer}");
        sql(&server, "postgres", &format!("DROP TABLE {back}")).await;
    }
    // Defaults, checks, generated columns, indexes and sequences come along; foreign keys are named.
    let answer = recovered(&host, &server, &["--table", "app.bookings", "--as", "back", "--to-lsn", &lsn]);
    assert!(answer["notes"].to_string().contains("foreign keys: bookings_customer_fkey"), "{answer}");
    // A sequence goes on behind what its server had logged ahead.
    let insert =
        "INSERT INTO app.back (customer) VALUES (4) RETURNING (id > 20001) || ' ' || doubled || ' ' || state";
    assert_eq!(one(&server, insert).await, "true 8 new");
    let indexes = "SELECT count(*) FROM pg_index WHERE indrelid = 'app.back'::regclass";
    assert_eq!(one(&server, indexes).await, "2");
    // A query sees other tables, and never one that was left out as if it were empty.
    let query = "SELECT c.name, count(*) AS bookings FROM app.customers c JOIN app.bookings b ON b.customer = c.id GROUP BY 1";
    let expected = format!(
        "{:?}",
        sql(&whole, "postgres", &format!("SELECT count(*), sum(bookings) FROM ({query}) q")).await
    );
    for (tables, restored) in [
        (&["--table", "app.customers", "--table", "app.bookings"][..], "tables"),
        (&["--table", "app.customers"], "cluster"),
    ] {
        let args =
            [tables, &["--query", query, "--schema", "public", "--as", "counted", "--to-lsn", &lsn]].concat();
        let answer = recovered(&host, &server, &args);
        assert_eq!(answer["restored"], restored, "{answer}");
        let found = sql(&server, "postgres", "SELECT count(*), sum(bookings) FROM counted").await;
        assert_eq!(format!("{found:?}"), expected);
        sql(&server, "postgres", "DROP TABLE counted").await;
    }
}

/// What is refused, and says why.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_recovered_is_said_before_anything_is_changed() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = host.server();
    sql(&server, "postgres", TABLES).await;
    sql(
        &server,
        "postgres",
        "CREATE VIEW app.a_view AS SELECT 1 AS n; CREATE UNLOGGED TABLE app.fleeting AS SELECT 1 AS n",
    )
    .await;
    host.back_up(&server);
    let into = server.url("postgres");
    let work = host.place("work");
    let fails = |args: &[&str], kind, word: &str| {
        let fixed = ["recover", "--into", &into, "--yes", "--to-backup-end", "--work-dir", &work];
        let said = host.fails(&[&fixed[..], args].concat(), kind);
        assert!(said.contains(word), "{word} is not in {said}");
    };
    fails(&["--table", "app.boookings"], ErrorKind::Usage, "there were: app.bookings");
    fails(&["--table", "public.bookings"], ErrorKind::Usage, "app.bookings");
    fails(&["--table", "app.bookings", "--as", "other"], ErrorKind::Conflict, "--as");
    fails(&["--table", "app.bookings", "--schema", "nowhere"], ErrorKind::Usage, "no schema nowhere");
    fails(&["--table", "app.a_view"], ErrorKind::Unsupported, "--query");
    fails(&["--table", "app.vanishing", "--merge-missing"], ErrorKind::Unsupported, "no primary key");
    fails(
        &["--table", "app.bookings", "--database", "nosuch"],
        ErrorKind::NoDatabase,
        "no database nosuch in the backup",
    );
    fails(&["--query", "SELECT nothing", "--as", "q"], ErrorKind::Database, "nothing");
    let said = host.fails(&["recover", "--into", &into, "--table", "app.bookings"], ErrorKind::Usage);
    assert!(said.contains("--yes") && said.contains("database postgres of PostgreSQL"), "{said}");
    let plan = host.json(&["recover", "--into", &into, "--table", "app.bookings", "--dry-run"]);
    assert!(plan["plan"]["into"].as_str().unwrap().starts_with("app.bookings_recovered_20"), "{plan}");
    assert_eq!(one(&server, "SELECT count(*) FROM pg_class WHERE relname ~ 'recovered|^q$'").await, "0");
    // Without a view of its digest, damage of a part is found by its frames.
    for part in host.files("repo").iter().filter(|path| path.contains("/parts/") && path.contains(".tar.")) {
        let path = host.path("repo").join(part);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.iter_mut().skip(20_000).step_by(50_000).for_each(|byte| *byte ^= 1);
        std::fs::write(path, bytes).unwrap();
    }
    fails(&["--table", "app.bookings"], ErrorKind::Integrity, "damaged");
    let log = host.json(&["audit", "list"]);
    assert!(log.to_string().contains("\"recover\""), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_rows_go_back() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = host.server();
    sql(&server, "postgres", TABLES).await;
    let (bookings, parts) = ("id, customer, state, at, note", "id, at, note");
    let before =
        (rows_of(&server, "app.bookings", bookings).await, rows_of(&server, "app.parts", parts).await);
    host.back_up(&server);
    let logical = host.back_up_with(&server, &[])["id"].as_str().unwrap().to_owned();
    for backup in [&["--to-backup-end"][..], &[&logical]] {
        let merge = |table: &str, more: &[&str]| {
            let args = [&["--table", table, "--merge-missing"][..], backup, more].concat();
            recovered(&host, &server, &args)["merged"].clone()
        };
        let counts = |merged: &Value| {
            ["in_backup", "put_back", "already_there", "differing"].map(|name| merged[name].as_u64().unwrap())
        };
        sql(
            &server,
            "postgres",
            "DELETE FROM app.bookings WHERE id % 3 = 0; DELETE FROM app.parts WHERE id > 100",
        )
        .await;
        sql(&server, "postgres", "UPDATE app.bookings SET note = 'kept' WHERE id = 1").await;
        assert_eq!(counts(&merge("app.bookings", &[])), [20000, 6666, 13334, 1]);
        assert_eq!(
            one(
                &server,
                "UPDATE app.bookings SET note = 'note 1' WHERE id = 1 AND note = 'kept' RETURNING 1"
            )
            .await,
            "1"
        );
        assert_eq!(counts(&merge("app.parts", &[])), [3000, 2900, 100, 0]);
        let after =
            (rows_of(&server, "app.bookings", bookings).await, rows_of(&server, "app.parts", parts).await);
        assert_eq!(after, before);
    }

    // Foreign keys are checked, a row that has no parent is named, and nothing is half done.
    sql(&server, "postgres", "DELETE FROM app.bookings; DELETE FROM app.customers WHERE id = 17").await;
    let into = server.url("postgres");
    let refused = |args: &[&str], kind, word: &str| {
        let fixed = [
            "recover",
            "--into",
            &into,
            "--yes",
            "--to-backup-end",
            "--merge-missing",
            "--table",
            "app.bookings",
        ];
        let said = host.fails(&[&fixed[..], args].concat(), kind);
        assert!(said.contains(word), "{word} is not in {said}");
    };
    refused(&[], ErrorKind::Database, "Key (customer)=(17) is not present");
    assert_eq!(one(&server, "SELECT count(*) FROM app.bookings").await, "0");
    // Columns that changed: a new one, another type, another name; triggers fire.
    sql(&server, "postgres", "
        INSERT INTO app.customers VALUES (17, 'customer 17');
        CREATE TABLE app.log (n int);
        CREATE FUNCTION app.noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO app.log VALUES (1); RETURN NEW; END';
        CREATE TRIGGER noted AFTER INSERT ON app.bookings FOR EACH ROW EXECUTE FUNCTION app.noted();
        ALTER TABLE app.bookings ADD extra text DEFAULT 'new';
        ALTER TABLE app.bookings ALTER id TYPE bigint;
        ALTER TABLE app.bookings RENAME note TO remark").await;
    refused(&[], ErrorKind::Usage, "no column note");
    refused(&["--column", "nosuch=remark"], ErrorKind::Usage, "had no column nosuch");
    sql(&server, "postgres", "ALTER TABLE app.bookings ADD wanted int NOT NULL").await;
    refused(&["--column", "note=remark"], ErrorKind::Usage, "wanted");
    sql(&server, "postgres", "ALTER TABLE app.bookings DROP wanted").await;
    let args = ["--table", "app.bookings", "--merge-missing", "--to-backup-end", "--column", "note=remark"];
    let answer = recovered(&host, &server, &args);
    assert_eq!(
        (answer["rows"].as_u64(), &answer["merged"]["triggers"][0]),
        (Some(20000), &Value::from("noted")),
        "{answer}"
    );
    assert!(answer["notes"].to_string().contains("bigint"), "{answer}");
    let found = rows_of(&server, "app.bookings", "id::int, customer, state, at, remark AS note").await;
    assert_eq!(found, before.0);
    assert_eq!(one(&server, "SELECT count(*) || ' ' || count(DISTINCT extra) FROM app.log, (SELECT DISTINCT extra FROM app.bookings) e").await, "20000 1");
}

/// Columns of the live table that went or came since the backup.
#[tokio::test(flavor = "multi_thread")]
async fn rows_go_back_into_a_table_of_other_columns() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = host.server();
    sql(&server, "postgres", TABLES).await;
    host.back_up(&server);
    let logical = host.back_up_with(&server, &[])["id"].as_str().unwrap().to_owned();
    let left = rows_of(&server, "app.bookings", "id, customer, state, at").await;
    sql(
        &server,
        "postgres",
        "ALTER TABLE app.bookings DROP note; CREATE DOMAIN app.code AS text NOT NULL; CREATE DOMAIN app.mark AS int DEFAULT 7 NOT NULL",
    )
    .await;
    let into = server.url("postgres");
    for backup in [&["--to-backup-end"][..], &[&logical]] {
        sql(&server, "postgres", "DELETE FROM app.bookings WHERE id % 3 = 0").await;
        let there = rows_of(&server, "app.bookings", "*").await;
        let args = |more: &[&'static str]| {
            [&["--table", "app.bookings", "--merge-missing"][..], backup, more].concat()
        };
        let refused = |more: &[&'static str], word: &str| {
            let fixed = ["recover", "--into", &into, "--yes"];
            let said = host.fails(&[&fixed[..], &args(more)].concat(), ErrorKind::Usage);
            assert!(said.contains(word), "{word} is not in {said}");
        };
        // The column that went: its values are left out where somebody says so.
        refused(&[], "the live table has no column note");
        assert_eq!(rows_of(&server, "app.bookings", "*").await, there);
        let answer = recovered(&host, &server, &args(&["--column", "note="]));
        assert_eq!(answer["merged"]["put_back"], 6666, "{answer}");
        assert!(answer["notes"].to_string().contains("column note was left out"), "{answer}");
        assert_eq!(rows_of(&server, "app.bookings", "id, customer, state, at").await, left);

        // Columns that came get their defaults; without one nothing can be put back.
        sql(&server, "postgres", "DELETE FROM app.bookings").await;
        let add = "ALTER TABLE app.bookings ADD tenant int NOT NULL DEFAULT 1, ADD mark app.mark";
        sql(&server, "postgres", add).await;
        let answer = recovered(&host, &server, &args(&["--column", "note="]));
        assert!(
            answer["notes"].to_string().contains("new columns get their defaults: tenant, mark"),
            "{answer}"
        );
        assert_eq!(rows_of(&server, "app.bookings", "id, customer, state, at").await, left);
        let counted = "SELECT count(*) FROM app.bookings WHERE tenant = 1 AND mark = 7";
        assert_eq!(one(&server, counted).await, "20000");
        sql(&server, "postgres", "DELETE FROM app.bookings").await;
        let without = "ALTER TABLE app.bookings ADD owner int NOT NULL, ADD code app.code";
        sql(&server, "postgres", without).await;
        refused(&["--column", "note="], "wants values that the backup does not have: owner, code");
        assert_eq!(one(&server, "SELECT count(*) FROM app.bookings").await, "0");
        let drop = "ALTER TABLE app.bookings DROP tenant, DROP mark, DROP owner, DROP code";
        sql(&server, "postgres", drop).await;
        recovered(&host, &server, &args(&["--column", "note="]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_come_out_of_logical_backups() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = host.server();
    sql(&server, "postgres", TABLES).await;
    let tables = [
        ("app.bookings", "id, customer, state, at, note"),
        ("app.documents", "id, body"),
        ("app.parts", "id, at, note"),
        ("app.\"Odd \"\"name\"", "\"a b\", c"),
    ];
    let mut before = Vec::new();
    for (table, columns) in tables {
        before.push(rows_of(&server, table, columns).await);
    }
    host.back_up_with(&server, &[]);
    sql(
        &server,
        "postgres",
        "DROP TABLE app.bookings; DROP TABLE app.parts; UPDATE app.documents SET body = 'x'",
    )
    .await;
    for ((table, columns), before) in tables.iter().zip(&before) {
        let answer = recovered(&host, &server, &["--table", table, "--as", "back"]);
        assert_eq!(rows_of(&server, "app.back", columns).await, *before, "{table}: {answer}");
        assert_eq!(answer["restored"], "chunks", "{answer}");
        sql(&server, "postgres", "DROP TABLE app.back").await;
    }
    let small = recovered(&host, &server, &["--table", "app.documents", "--as", "small"]);
    let all =
        host.json(&["show", "--contents"])["contents"]["databases"][0]["database_bytes"].as_u64().unwrap();
    assert!(small["raw_bytes"].as_u64().unwrap() < all, "{small} of {all}");
    let query = "SELECT state, count(*) AS n FROM app.bookings GROUP BY 1";
    recovered(&host, &server, &["--table", "app.bookings", "--as", "bookings"]);
    assert_eq!(rows_of(&server, "app.bookings", tables[0].1).await, before[0]);
    sql(&server, "postgres", "DROP TABLE app.bookings").await;
    recovered(&host, &server, &["--table", "app.bookings", "--query", query, "--as", "bookings"]);
    assert_eq!(one(&server, "SELECT sum(n) FROM app.bookings").await, "20000");
    recovered(&host, &server, &["--table", "app.bookings", "--query", query, "--as", "states"]);
    assert_eq!(one(&server, "SELECT n FROM app.states").await, "20000");
    let into = server.url("postgres");
    let near = host.fails(&["recover", "--into", &into, "--yes", "--table", "app.booking"], ErrorKind::Usage);
    assert!(near.contains("app.bookings"), "{near}");
    assert_eq!(one(&server, "SELECT count(*) FROM pg_database WHERE datname ~ 'pgark'").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_one_leaves_nothing_that_the_next_does_not_remove() {
    let host = Host::new();
    host.ok(&["init"]);
    let server = host.server();
    sql(&server, "postgres", TABLES).await;
    let before = rows_of(&server, "app.bookings", "id, customer, state, at, note").await;
    let logical = host.back_up_with(&server, &[])["id"].as_str().unwrap().to_owned();
    host.back_up(&server);
    let (into, work) = (server.url("postgres"), host.place("work"));
    for (n, backup) in [&["--to-backup-end"][..], &[&logical]].into_iter().enumerate() {
        let fixed = [
            "--json",
            "recover",
            "--into",
            &into,
            "--yes",
            "--work-dir",
            &work,
            "--table",
            "app.bookings",
            "--as",
            "back",
        ];
        let args = [&fixed[..], backup].concat();
        let mut killed = 0;
        for wait in [150, 600, 1300, 2100] {
            let mut child = host.command(&args).stdout(std::process::Stdio::null()).spawn().unwrap();
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(wait) && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(5));
            }
            if child.try_wait().unwrap().is_none() {
                kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
                killed += 1;
            }
            child.wait().unwrap();
            sql(&server, "postgres", "DROP TABLE IF EXISTS app.back").await;
        }
        assert!(killed > 0, "{n}: none was killed");
        let answer =
            recovered(&host, &server, &[&["--table", "app.bookings", "--as", "back"][..], backup].concat());
        assert_eq!(rows_of(&server, "app.back", "id, customer, state, at, note").await, before, "{answer}");
        sql(&server, "postgres", "DROP TABLE app.back").await;
    }
    assert_eq!(one(&server, "SELECT count(*) FROM pg_database WHERE datname ~ 'pgark'").await, "0");
    let running = Command::new("ps").args(["-eo", "args"]).output().unwrap();
    assert!(
        !String::from_utf8_lossy(&running.stdout).contains(&work),
        "a throwaway server runs on: {}",
        said(&running)
    );
}

/// Within a container, where the server's programs are of its version.
#[tokio::test(flavor = "multi_thread")]
async fn catalogs_of_18_are_read() {
    if support::left_out("docker") {
        return;
    }
    let container = support::containers::start(18).await;
    let session = support::connect(&container.url("postgres")).await;
    session.rows(TABLES).await.unwrap();
    container.copy_in(env!("CARGO_BIN_EXE_pgark").as_ref(), "/usr/bin/pgark");
    container.script(
        "cd /tmp; su postgres -c '
           pgark --quiet init --repo /tmp/repo
           pgark --quiet backup --repo /tmp/repo --db \"host=/var/run/postgresql dbname=postgres\" --physical
           psql -qc \"DELETE FROM app.documents\"
           for table in app.bookings app.documents app.parts; do
             pgark --quiet recover --repo /tmp/repo --into \"host=/var/run/postgresql dbname=postgres\" --yes --table $table \\
               --as back_${table#app.} --to-backup-end
           done
           pgark --json recover --repo /tmp/repo --into \"host=/var/run/postgresql dbname=postgres\" --yes --table app.documents \\
             --merge-missing --to-backup-end > /tmp/merged
           grep tables /tmp/merged'",
    );
    let count = "SELECT (SELECT count(*) FROM app.back_bookings) || ' ' || (SELECT sum(length(body)) FROM app.back_documents) || ' ' || \
                 (SELECT count(*) FROM app.back_parts) || ' ' || (SELECT sum(length(body)) FROM app.documents)";
    assert_eq!(session.value(count).await.unwrap().unwrap(), "20000 3200000 3000 3200000");
}

/// Increments that the server made from its summaries, within a container.
async fn a_chain_that_the_server_made(major: u32) {
    if support::left_out("docker") {
        return;
    }
    let (container, session) = support::containers::with_summaries(major).await;
    session.rows(TABLES).await.unwrap();
    container.copy_in(env!("CARGO_BIN_EXE_pgark").as_ref(), "/usr/bin/pgark");
    let backup = |how: &str| {
        container.script(&format!(
            "cd /tmp; su postgres -c 'pgark --quiet --state /tmp/state backup --repo /tmp/repo {how} \
             --db \"host=/var/run/postgresql dbname=postgres\"'"
        ));
    };
    backup("--physical");
    // What the server would get wrong as an increment comes whole: see `physical_summaries.rs`.
    for changes in [
        "UPDATE app.bookings SET note = 'changed' WHERE id % 7 = 0; DELETE FROM app.parts WHERE id < 500; \
         UPDATE app.documents SET body = repeat('x', 5000) WHERE id % 50 = 0; CHECKPOINT",
        "TRUNCATE app.other; INSERT INTO app.other SELECT n, 'again' FROM generate_series(1, 700) n; \
         DELETE FROM app.vanishing WHERE n > 100; VACUUM app.vanishing; \
         INSERT INTO app.vanishing SELECT n, 'new' FROM generate_series(5000, 9000) n; \
         CREATE TABLE app.came AS SELECT n, md5(n::text) AS v FROM generate_series(1, 3000) n; CHECKPOINT",
    ] {
        for one in changes.split("; ") {
            session.rows(one).await.unwrap();
        }
        backup("--incremental --server-summaries");
    }
    let made = "grep -l '\"incremental\"' /tmp/repo/clusters/main/backups/*/backup.json | wc -l | grep -x 2";
    container.script(made);
    let tables = ["bookings", "parts", "documents", "other", "vanishing", "came"];
    let sum = async |name: &str| {
        // Generated columns are made anew, and are the same.
        let sql = format!("SELECT count(*) || ' ' || sum(hashtextextended(t::text, 7)) FROM app.{name} t");
        session.value(&sql).await.unwrap().unwrap()
    };
    let mut before = Vec::new();
    for table in tables {
        before.push(sum(table).await);
    }
    for table in tables {
        session.rows(&format!("DROP TABLE app.{table}")).await.unwrap();
    }
    for (table, before) in tables.iter().zip(before) {
        container.script(&format!(
            "cd /tmp; su postgres -c 'pgark --json recover --repo /tmp/repo --into \"host=/var/run/postgresql dbname=postgres\" \
             --yes --table app.{table} --as {table} --to-backup-end' > /tmp/recovered; grep tables /tmp/recovered"
        ));
        assert_eq!(sum(table).await, before, "{major}: {table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_17_made() {
    a_chain_that_the_server_made(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_18_made() {
    a_chain_that_the_server_made(18).await;
}
