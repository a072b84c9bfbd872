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
        Self(bench(&["-c", "2", "-T", "600"]).spawn().unwrap())
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
}
