//! Restores into databases that are there, as people and scripts run them: questions, refusals, commands around.

#![allow(clippy::unwrap_used, missing_docs)]

mod cli;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use cli::{Pgark, said};
use pgark::ErrorKind;
use pgark::postgres::TempServer;
use serde_json::Value;
use support::{connect, containers, fingerprint, left_out, sample, server, sql};

/// A server with a database, and its backup in the folder "repo".
async fn backed_up() -> (TempServer, Pgark) {
    let server = server();
    sql(&server, "postgres", "CREATE DATABASE shop").await;
    sql(&server, "shop", &sample(100)).await;
    let pgark = Pgark::new().with("PGARK_REPO", "repo");
    pgark.json(&["backup", "--db", &server.url("shop")]);
    (server, pgark)
}

async fn count(server: &TempServer, table: &str) -> String {
    sql(server, "shop", &format!("SELECT count(*) FROM {table}")).await.remove(0).remove(0).unwrap()
}

async fn databases(server: &TempServer) -> Vec<String> {
    let rows =
        sql(server, "postgres", "SELECT datname FROM pg_database WHERE datname ~ '^shop' ORDER BY 1").await;
    rows.into_iter().filter_map(|mut row| row.remove(0)).collect()
}

/// Runs it on a terminal, and answers.
fn on_a_terminal(pgark: &Pgark, args: &[&str], answer: &str) -> (bool, String) {
    let quoted: Vec<String> = args.iter().map(|arg| format!("'{arg}'")).collect();
    let line = format!("{} {}", env!("CARGO_BIN_EXE_pgark"), quoted.join(" "));
    let mut command = pgark.command(&[]);
    let mut script = std::process::Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env_clear().current_dir(pgark.home());
    script.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::null());
    script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = script.spawn().unwrap();
    child.stdin.take().unwrap().write_all(answer.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), said(&output))
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_loses_a_database_without_being_asked() {
    let (server, pgark) = backed_up().await;
    let before = fingerprint(&connect(&server.url("shop")).await).await;
    sql(
        &server,
        "shop",
        "DELETE FROM people WHERE id > 7 AND id NOT IN (SELECT id FROM \"odd \"\"name\"\"\".\"t 1\")",
    )
    .await;
    sql(&server, "shop", "CREATE TABLE since (x int)").await;
    let into = server.url("shop");
    // Without a word of how, it is refused and the ways are named.
    let refused = pgark.fails(&["restore", "latest", "--into", &into, "--yes"], ErrorKind::Conflict);
    refused.says("exists and is not empty").says("--swap").says("--replace").says("--table");
    // Nobody can be asked here.
    let swap = ["restore", "latest", "--into", &into, "--swap"];
    let refused = pgark.fails(&swap, ErrorKind::Usage);
    refused.says("shop").says(".s.PGSQL.5432").says("MiB").says("kept under another name").says("--yes");
    for (way, word) in [("--replace", "dropped"), ("--data-only", "rows")] {
        pgark.fails(&["restore", "latest", "--into", &into, way], ErrorKind::Usage).says(word);
    }
    // Somebody says no, or nothing.
    for answer in ["n\n", "\n", "yesterday\n"] {
        let (done, said) = on_a_terminal(&pgark, &swap, answer);
        assert!(!done && said.contains("Go on? [y/N]") && said.contains("nothing was changed"), "{said}");
    }
    assert_eq!(databases(&server).await, ["shop"]);
    assert_eq!(count(&server, "since").await, "0");
    // And then yes.
    let (done, said) = on_a_terminal(&pgark, &swap, "y\n");
    assert!(done && said.contains("the old database is kept as shop_pgark_old_"), "{said}");
    assert_eq!(fingerprint(&connect(&into).await).await, before);
    let done = pgark.json(&["restore", "latest", "--into", &into, "--replace", "--yes"]);
    let target = &done["restored"]["target"];
    assert_eq!((&target["swapped"], &target["old_database"]), (&Value::Bool(true), &Value::Null));
    let two = databases(&server).await;
    assert_eq!(two.len(), 2);
    // What the swap kept goes when somebody says so.
    let drop_old = ["restore", "--into", &into, "--drop-old"];
    pgark.fails(&drop_old, ErrorKind::Usage).says(&two[1]).says("will be dropped").says("--yes");
    pgark.fails(&[&drop_old[..], &["latest", "--yes"]].concat(), ErrorKind::Usage).says("--swap");
    let used = connect(&server.url(&two[1])).await;
    pgark.fails(&[&drop_old[..], &["--yes"]].concat(), ErrorKind::Database).says("other users");
    let dropped = pgark.json(&[&drop_old[..], &["--yes", "--end-sessions"]].concat());
    assert_eq!(dropped["dropped"][0]["name"], two[1].as_str());
    assert!(used.value("SELECT 1").await.is_err());
    assert_eq!(databases(&server).await, ["shop"]);
    assert!(pgark.text(&[&drop_old[..], &["--yes"]].concat()).contains("no swap has kept"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_ended_only_when_asked() {
    let (server, pgark) = backed_up().await;
    let into = server.url("shop");
    let session = connect(&into).await;
    let swap = ["restore", "latest", "--into", &into, "--swap", "--yes"];
    pgark.fails(&swap, ErrorKind::Unsupported).says("in use by postgres (pgark)").says("--end-sessions");
    assert_eq!(session.value("SELECT 1").await.unwrap().as_deref(), Some("1"));
    assert_eq!(databases(&server).await, ["shop"]);
    pgark.json(&[&swap[..], &["--end-sessions"]].concat());
    assert!(session.value("SELECT 1").await.is_err());
    pgark.fails(&["restore", "--into", &into, "--end-sessions"], ErrorKind::Usage);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pg_restore_that_is_killed_leaves_the_old_database() {
    use std::os::unix::fs::PermissionsExt;
    let (server, pgark) = backed_up().await;
    let into = server.url("shop");
    sql(&server, "shop", "CREATE TABLE since (x int)").await;
    for section in ["pre-data", "data", "post-data"] {
        let tool = pgark.write(
            "bin/pg_restore",
            &format!(
                "#!/bin/sh\nbin={}\nfor arg; do [ \"$arg\" = --section={section} ] && kill -9 $$; done\nexec $bin/pg_restore \"$@\"\n",
                server.bin().display()
            ),
        );
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
        let restore = ["restore", "latest", "--into", &into, "--replace", "--yes", "--pg-bin", "bin"];
        pgark.fails(&restore, ErrorKind::ToolFailed).says("killed by signal 9");
        assert_eq!(databases(&server).await, ["shop"], "{section}");
        assert_eq!(count(&server, "since").await, "0", "{section}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_around_a_restore() {
    let (server, pgark) = backed_up().await;
    let told = pgark.path("told");
    let heard = || std::fs::read_to_string(&told).unwrap_or_default();
    let tell =
        |word: &str| format!("echo {word} $PGARK_DATABASE $PGARK_BACKUP $PGARK_RESULT >> told; echo said");
    let (before, after) = (tell("before"), tell("after"));
    let into = server.url("shop2");
    let done =
        pgark.run(&["--json", "restore", "latest", "--into", &into, "--before", &before, "--after", &after]);
    assert!(done.status.success(), "{}", said(&done));
    let answer: Value = serde_json::from_slice(&done.stdout).unwrap();
    let id = answer["restored"]["backup"]["id"].as_str().unwrap().to_owned();
    assert_eq!(heard(), format!("before shop2 {id}\nafter shop2 {id} ok\n"));
    // From the configuration; what fails in the middle is told to the second one.
    std::fs::remove_file(&told).unwrap();
    let config = pgark.write("hooks.toml", &format!("[restore]\nbefore = '{before}'\nafter = '{after}'\n"));
    let failed = pgark.run(&["--config", &config, "restore", "latest", "--into", &server.url("shop")]);
    assert_eq!(failed.status.code(), Some(i32::from(ErrorKind::Conflict.code())), "{}", said(&failed));
    assert_eq!(heard(), format!("before shop {id}\nafter shop {id} failed\n"));
    // When the first one fails, nothing is restored.
    std::fs::remove_file(&told).unwrap();
    let args = ["restore", "latest", "--into", &server.url("shop3"), "--before", "exit 3", "--after", &after];
    let failed = pgark.run(&args);
    let text = said(&failed);
    assert_eq!(failed.status.code(), Some(i32::from(ErrorKind::ToolFailed.code())), "{text}");
    assert!(text.contains("exit status: 3") && text.contains("nothing was restored"), "{text}");
    assert_eq!(heard(), format!("after shop3 {id} failed\n"));
    assert_eq!(databases(&server).await, ["shop", "shop2"]);
    // A restore that is done says so when the second one fails.
    let args = ["restore", "latest", "--into", &server.url("shop3"), "--after", "false"];
    let failed = cli::failure(&pgark.run(&args), ErrorKind::ToolFailed);
    failed.says("the restore is done");
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_made_anew_and_come_back_when_that_fails() {
    let server = server();
    made_anew(|database| server.url(database), server.bin()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_made_anew_in_containers() {
    if left_out("docker") {
        return;
    }
    for major in [17, 18] {
        let container = containers::start(major).await;
        made_anew(|database| container.url(database), &containers::tools(major)).await;
    }
}

async fn made_anew(url: impl Fn(&str) -> String, bin: &Path) {
    let tools = ["--pg-bin", bin.to_str().unwrap()];
    connect(&url("postgres")).await.rows("CREATE DATABASE shop").await.unwrap();
    let into = url("shop");
    // No session stays open: it would be in the way of bringing the database back.
    let sql = async |text: &str| connect(&into).await.rows(text).await.unwrap();
    sql(&sample(100)).await;
    let count =
        async |table: &str| sql(&format!("SELECT count(*) FROM {table}")).await.remove(0).remove(0).unwrap();
    let pgark = Pgark::new().with("PGARK_REPO", "repo");
    pgark.json(&[&["backup", "--db", &into][..], &tools].concat());
    let before = fingerprint(&connect(&into).await).await;
    let first = pgark.json(&["list"])["backups"][0]["id"].as_str().unwrap().to_owned();
    let changes = "DELETE FROM \"odd \"\"name\"\"\".\"t 1\"; CREATE TABLE since (x int); DROP VIEW adults";
    sql(changes).await;
    let clean = ["restore", &first, "--into", &into, "--clean", "--yes"];
    let done = pgark.json(&[&clean[..], &tools].concat());
    let safety = done["restored"]["target"]["safety_backup"].as_str().unwrap();
    assert!(pgark.text(&["show", safety]).contains(&format!("before restore of {first}")));
    assert_eq!(count("since").await, "0");
    sql("DROP TABLE since").await;
    assert_eq!(fingerprint(&connect(&into).await).await, before);
    // Where something else depends on them, nothing is dropped.
    sql("CREATE VIEW mine AS SELECT * FROM people; DELETE FROM parted").await;
    let failed = pgark.run(&[&clean[..], &tools, &["--no-safety-backup"]].concat());
    let failed = cli::failure(&failed, ErrorKind::Database);
    failed.says("dropping TABLE public.people").says("nothing was changed");
    assert_eq!(count("mine").await, "100");
    // A failure after that brings everything back.
    sql("DROP VIEW mine; CREATE TABLE since (x int)").await;
    let tool = pgark.write(
        "bin/pg_restore",
        &format!(
            "#!/bin/sh\n[ -e used ] || for arg; do [ \"$arg\" = --section=post-data ] && touch used && kill -9 $$; done\nexec {}/pg_restore \"$@\"\n",
            bin.display()
        ),
    );
    std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink(bin.join("pg_dump"), pgark.path("bin/pg_dump")).unwrap();
    let failed =
        cli::failure(&pgark.run(&[&clean[..], &["--pg-bin", "bin"]].concat()), ErrorKind::ToolFailed);
    failed.says("killed by signal 9").says("the database was brought back from backup");
    assert_eq!((count("since").await, count("people").await), ("0".to_owned(), "100".to_owned()));
    assert_eq!(count("parted").await, "0");
    let shops = "SELECT string_agg(datname, ',') FROM pg_database WHERE datname ~ '^shop'";
    assert_eq!(sql(shops).await, [[Some("shop".to_owned())]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_is_restored_by_name() {
    let (server, pgark) = backed_up().await;
    let into = server.url("shop_part");
    let names =
        ["--table", "\"odd \"\"name\"\"\".\"t 1\"", "--table", "public.people", "--no-owner", "--no-acl"];
    pgark.json(&[&["restore", "latest", "--into", &into][..], &names].concat());
    let tables = "SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_class WHERE relkind = 'r' AND relnamespace > 16000 OR relname = 'people'";
    assert_eq!(sql(&server, "shop_part", tables).await, [[Some("people,t 1".to_owned())]]);
    pgark
        .fails(&["restore", "--into", &into, "--table", "public.nothing", "--yes"], ErrorKind::Usage)
        .says("no table public.nothing");
    let wrong = pgark.run(&["restore", "--into", &into, "--table", "people"]);
    assert!(said(&wrong).contains("SCHEMA.TABLE"), "{}", said(&wrong));
    // Into a database with other things in it, after a question.
    let more = ["restore", "--into", &into, "--table", "public.parted"];
    pgark.fails(&more, ErrorKind::Usage).says("--yes");
    pgark.json(&[&more[..], &["--yes"]].concat());
    pgark
        .fails(&[&more[..], &["--yes"]].concat(), ErrorKind::Unsupported)
        .says("there already")
        .says("public.parted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_database_is_backed_up_and_never_taken_for_all_of_it() {
    let (server, pgark) = backed_up().await;
    let whole = pgark.json(&["list"])["backups"][0]["id"].as_str().unwrap().to_owned();
    let db = server.url("shop");
    let part = pgark.json(&["backup", "--db", &db, "--table", "public.parted*", "--no-large-objects"]);
    let part = part["backup"]["id"].as_str().unwrap().to_owned();
    assert!(pgark.text(&["list"]).contains("shop (part)"));
    assert!(pgark.text(&["show", &part]).contains("only a part"));
    assert!(!pgark.text(&["show", &whole]).contains("only a part"));
    // The newest is the part, and latest is the whole.
    let done = pgark.json(&["restore", "latest", "--into", &server.url("shop2")]);
    assert_eq!(done["restored"]["backup"]["id"], whole.as_str());
    let done = pgark.json(&["restore", &part, "--into", &server.url("shop3")]);
    assert_eq!(done["restored"]["backup"]["id"], part.as_str());
    let tables = "SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_class WHERE relkind IN ('r', 'p') AND oid > 16000";
    assert_eq!(sql(&server, "shop3", tables).await, [[Some("parted,parted_a,parted_b".to_owned())]]);
    pgark
        .fails(&["restore", &part, "--into", &db, "--swap", "--yes"], ErrorKind::Usage)
        .says("whole database");
    // Where there are only parts it says so.
    let config = format!(
        "[cluster.parts]\ndb = \"{db}\"\nselect = {{ exclude_table_data = ['public.people', 'odd*.*'] }}\n"
    );
    let config = pgark.write("parts.toml", &config);
    pgark.json(&["--config", &config, "backup"]);
    let output = pgark.run(&["--config", &config, "restore", "--into", &server.url("shop4")]);
    assert!(
        output.status.success() && said(&output).contains("warning: every backup here has only a part"),
        "{}",
        said(&output)
    );
    assert_eq!(sql(&server, "shop4", "SELECT count(*) FROM people").await, [[Some("0".to_owned())]]);
    assert_eq!(sql(&server, "shop4", "SELECT count(*) FROM parted").await, [[Some("1000".to_owned())]]);
    for (args, words) in [
        (["--schema-only", "--data-only"].as_slice(), "cannot be used with"),
        (&["--physical", "--table", "public.people"], "cannot be used with"),
        (&["--table", "public.nothing"], "no matching tables"),
    ] {
        let output = pgark.run(&[&["backup", "--db", &db], args].concat());
        assert!(!output.status.success() && said(&output).contains(words), "{args:?}: {}", said(&output));
    }
}
