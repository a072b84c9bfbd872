//! Logical backups bring everything back: definitions and rows, in every encoding, of every version.

#![allow(clippy::unwrap_used)]

mod support;

use pgark::logical::{Dump, Selection};
use pgark::postgres::Tools;
use support::logical::{assert_same_lines, back_up, pg_dump};
use support::{connect, conninfo, containers, left_out};

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
