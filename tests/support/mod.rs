//! What the tests share: throwaway servers, a database with a bit of everything, keys, repositories.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs
)]

pub mod bytes;
pub mod chain;
pub mod containers;
pub mod counting;
pub mod dice;
pub mod logical;
pub mod physical;
pub mod round_trip;
pub mod shelf;

use std::path::Path;
use std::sync::Arc;

use pgark::crypt::{Age, IdentityFile, generate_identity};
use pgark::postgres::{ConnInfo, Environment, Session, TempServer, TempServerOptions};
use pgark::{
    CancellationToken, MemoryTransport, Remote, Repository, RetryPolicy, Store, StoreOptions, open_store,
};

/// A throwaway server from this machine's programs.
pub fn server() -> TempServer {
    server_with(&TempServerOptions::default())
}

pub fn server_with(options: &TempServerOptions) -> TempServer {
    TempServer::start(options).unwrap_or_else(|e| panic!("tests need PostgreSQL server programs: {e:?}"))
}

/// A free TCP port.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub fn conninfo(text: &str) -> ConnInfo {
    ConnInfo::resolve(text, &Environment::default()).unwrap()
}

pub async fn connect(text: &str) -> Session {
    conninfo(text).connect().await.unwrap()
}

/// Runs SQL in one of a server's databases.
pub async fn sql(server: &TempServer, database: &str, sql: &str) -> Vec<Vec<Option<String>>> {
    let session = server.conninfo(database).unwrap().connect().await.unwrap();
    session.rows(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"))
}

/// Waits until a restored copy has ended its recovery: `pg_ctl` only waits until it can be read.
pub async fn recovered(server: &TempServer) {
    let begun = std::time::Instant::now();
    while sql(server, "postgres", "SELECT pg_is_in_recovery()").await != [[Some("f".to_owned())]] {
        assert!(begun.elapsed().as_secs() < 60, "the recovery does not end");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Waits until something holds.
pub async fn until(holds: impl Fn() -> bool, what: &str) {
    let begun = std::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed().as_secs() < 60, "waited for a minute: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Waits until a query has this answer.
pub async fn until_sql(server: &TempServer, query: &str, answer: &str) {
    let begun = std::time::Instant::now();
    while sql(server, "postgres", query).await != [[Some(answer.to_owned())]] {
        assert!(begun.elapsed().as_secs() < 60, "waited for a minute: {query}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// A schema with a bit of everything, and `rows` rows in its largest table.
pub fn sample(rows: u32) -> String {
    format!(
        r#"
        CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
        CREATE DOMAIN positive AS int CHECK (VALUE > 0);
        CREATE SCHEMA "odd ""name""";
        CREATE TABLE people (id serial PRIMARY KEY, name text NOT NULL, mood mood, age positive, doc jsonb, raw bytea,
          doubled int GENERATED ALWAYS AS (id * 2) STORED);
        INSERT INTO people (name, mood, age, doc, raw)
          SELECT 'näme ' || i, (ARRAY['sad','ok','happy'])[1 + i % 3]::mood, 1 + i % 90,
            jsonb_build_object('i', i, 'md5', md5(i::text)), decode(md5(i::text), 'hex')
          FROM generate_series(1, {rows}) i;
        CREATE TABLE "odd ""name"".""t" (x int, "Größe
zwei" text);
        CREATE TABLE "odd ""name"""."t 1" (id int REFERENCES people, note text DEFAULT E'tab\there');
        INSERT INTO "odd ""name"""."t 1" SELECT i, E'line\nbreak \\ ' || i FROM generate_series(1, least(100, {rows})) i;
        CREATE TABLE empty_table (x int);
        CREATE TABLE no_columns ();
        INSERT INTO no_columns DEFAULT VALUES;
        CREATE TABLE parted (id int, at date) PARTITION BY RANGE (at);
        CREATE TABLE parted_a PARTITION OF parted FOR VALUES FROM ('2026-01-01') TO ('2026-07-01');
        CREATE TABLE parted_b PARTITION OF parted FOR VALUES FROM ('2026-07-01') TO ('2027-01-01');
        INSERT INTO parted SELECT i, date '2026-01-01' + i % 365 FROM generate_series(1, 1000) i;
        CREATE MATERIALIZED VIEW moods AS SELECT mood, count(*) FROM people GROUP BY mood;
        CREATE VIEW adults AS SELECT * FROM people WHERE age >= 18;
        CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2';
        CREATE INDEX people_twice ON people (twice(age));
        SELECT lo_from_bytea(424242, 'a large object');
        COMMENT ON TABLE people IS 'it''s people';
        "#
    )
}

/// What must be equal after a restore: for each table its rows and the sum over their contents.
pub async fn fingerprint(session: &Session) -> Vec<String> {
    let tables = session
        .rows(
            "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE relkind IN ('r', 'p', 'm', 'v') AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
             AND n.nspname !~ '^pg_' ORDER BY 1",
        )
        .await
        .unwrap();
    let mut found = Vec::new();
    for table in tables.into_iter().map(|mut row| row.remove(0).unwrap()) {
        let row = session
            .rows(&format!("SELECT count(*), sum(hashtextextended(t::text, 7)) FROM {table} t"))
            .await
            .unwrap();
        found.push(format!("{table} {:?}", row[0]));
    }
    let objects = session
        .rows("SELECT loid, md5(string_agg(data, '' ORDER BY pageno)) FROM pg_largeobject GROUP BY loid")
        .await
        .unwrap();
    found.push(format!("large objects {objects:?}"));
    found
}

/// A pair of keys: what reads, and the recipient.
pub fn keys() -> (IdentityFile, String) {
    use secrecy::ExposeSecret;
    let (text, recipient) = generate_identity(jiff::Timestamp::now());
    (IdentityFile::parse(text.expose_secret()).unwrap(), recipient)
}

/// Retries without waits.
pub fn quick() -> RetryPolicy {
    let mut policy = RetryPolicy::default();
    policy.first_delay = std::time::Duration::from_millis(1);
    policy.longest_delay = std::time::Duration::from_millis(5);
    policy.timeout = std::time::Duration::from_secs(5);
    policy
}

/// What a failed run left; without the audit log, which tells of it.
pub fn left(memory: &MemoryTransport) -> Vec<String> {
    memory.keys().into_iter().filter(|key| !key.contains("/audit/")).collect()
}

/// A repository in memory, and a handle to what is in it.
pub async fn memory_repository() -> (Repository, MemoryTransport) {
    let memory = MemoryTransport::new();
    let store = Remote::new(memory.clone(), "memory", quick());
    (Repository::init(Arc::new(store)).await.unwrap().0, memory)
}

/// A repository in a folder.
pub async fn local_repository(folder: &Path) -> Repository {
    let store = open_store(&folder.display().to_string(), &StoreOptions::default()).unwrap();
    Repository::init(store).await.unwrap().0
}

/// Whether tests that need `what` were left out by name (`PGARK_TEST_WITHOUT=docker,azurite`). They say so; where
/// everything is required (`PGARK_TEST_ALL=1`) they fail instead.
pub fn left_out(what: &str) -> bool {
    let without = std::env::var("PGARK_TEST_WITHOUT").unwrap_or_default();
    let left_out = without.split(',').any(|name| name.trim() == what);
    if left_out {
        assert!(std::env::var("PGARK_TEST_ALL").is_err(), "{what} is required here and was left out");
        println!("left out by name: this test needs {what}");
    }
    left_out
}
