//! A program in C makes backups with libpgark.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;

use pgark::postgres::{Session, TempServer, TempServerOptions};
use pgark::repository::{BackupRecord, Catalog, ClusterName};
use pgark::verify::{VerifyOptions, verify};
use pgark::{CancellationToken, Repository, StoreOptions, open_store};
use serde_json::Value;

/// Whose key nobody here has: a host that makes backups needs none.
const RECIPIENT: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";

#[tokio::test(flavor = "multi_thread")]
async fn a_program_in_c() {
    there_and_back(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_in_c_under_valgrind() {
    if std::env::var("PGARK_TEST_WITHOUT")
        .is_ok_and(|without| without.split(',').any(|what| what.trim() == "valgrind"))
    {
        println!("left out by name: this test needs valgrind");
        return;
    }
    let definite = ["--leak-check=full", "--show-leak-kinds=definite", "--errors-for-leak-kinds=definite"];
    there_and_back(&[&["valgrind", "--quiet", "--error-exitcode=99"], &definite[..]].concat()).await;
}

/// Runs the program, below `wrapper` if there is one, and checks what it says and what it leaves.
async fn there_and_back(wrapper: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path());
    let server = TempServer::start(&TempServerOptions::default())
        .unwrap_or_else(|e| panic!("tests need PostgreSQL server programs: {e:?}"));
    let _lock = databases(&server).await;
    let repository = folder.path().join("backups").display().to_string();
    let config = format!("[repository]\nurl = '{repository}'\n[encryption]\nrecipients = ['{RECIPIENT}']\n");

    let mut words = wrapper.iter().map(PathBuf::from).chain([program]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).args([config, server.url("shop"), server.url("no_such"), server.url("locked")]);
    let output = command.output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}\n{stdout}\n{stderr}", output.status);
    // valgrind says there what it does not know; what it finds is in its exit code.
    assert!(!wrapper.is_empty() || stderr.is_empty(), "{stderr}");

    let said = |what: &str| {
        let found = stdout.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(": "));
        found.unwrap_or_else(|| panic!("nothing about {what}: {stdout}")).to_owned()
    };
    assert_eq!(said("version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(said("no repository"), format!("40: there is no repository at {repository}"));
    assert!(said("missing database").starts_with("12: there is no database no_such"), "{stdout}");
    assert_eq!(said("missing database, hint"), "check the name; psql -l lists the databases");
    assert!(said("malformed configuration").starts_with("3: config_toml:2:7: "), "{stdout}");
    assert_eq!(said("no configuration"), "2: config_toml is NULL");
    assert!(said("not UTF-8").starts_with("2: cluster is not UTF-8"), "{stdout}");
    assert_eq!(said("cancelled"), "130: cancelled");
    assert_eq!(said("cancelled, hint"), "none");
    assert!(stdout.ends_with("done\n"));

    let made: Value = serde_json::from_str(&said("backup")).unwrap();
    assert_eq!(made["new_repository"], true);
    assert_eq!(made["backup"]["encryption"]["method"], "age");
    let listed: Value = serde_json::from_str(&said("list")).unwrap();
    assert_eq!(listed["cluster"], "main");
    assert_eq!(listed["backups"].as_array().map(Vec::len), Some(1));
    let record = only_backup(&repository).await;
    assert_eq!(made["backup"]["id"], record.id.as_str());
    assert_eq!(made["repository"], repository);
}

/// The only backup of a repository, when its stored bytes are good.
async fn only_backup(url: &str) -> BackupRecord {
    let repository = Repository::open(open_store(url, &StoreOptions::default()).unwrap()).await.unwrap();
    let catalog = Catalog::load(&repository, &ClusterName::default()).await.unwrap();
    assert_eq!(catalog.backups().len(), 1);
    let record = repository.record(catalog.cluster(), &catalog.find("latest").unwrap().id).await.unwrap();
    let report =
        verify(&repository, &record, VerifyOptions::default(), &CancellationToken::new()).await.unwrap();
    assert!(report.is_good(), "{report:?}");
    record
}

/// Makes `shop`, which can be backed up, and `locked`, whose dump waits as long as the session lives.
async fn databases(server: &TempServer) -> Session {
    let maintenance = server.conninfo("postgres").unwrap().connect().await.unwrap();
    maintenance.rows("CREATE DATABASE shop").await.unwrap();
    maintenance.rows("CREATE DATABASE locked").await.unwrap();
    let shop = server.conninfo("shop").unwrap().connect().await.unwrap();
    shop.rows("CREATE TABLE orders AS SELECT i, md5(i::text) AS note FROM generate_series(1, 20000) i")
        .await
        .unwrap();
    let locked = server.conninfo("locked").unwrap().connect().await.unwrap();
    locked.rows("CREATE TABLE t (x int); BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    locked
}

/// Compiles the program against the header and the library of this source.
fn compile(folder: &Path) -> PathBuf {
    let library = build_library();
    let lib_folder = library.parent().unwrap().display().to_string();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = folder.join("backup");
    let compiled = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-g", "-pthread", "-I"])
        .args([&here.join("include"), &here.join("tests/c/backup.c")])
        .arg("-o")
        .arg(&program)
        .args([format!("-L{lib_folder}"), "-lpgark".to_owned(), format!("-Wl,-rpath,{lib_folder}")])
        .output()
        .unwrap_or_else(|e| panic!("tests need a C compiler: {e}"));
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    program
}

/// Builds the library, as a test's own build does not, and tells where it is.
fn build_library() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let built = Command::new(env!("CARGO"))
        .args([
            "build",
            "--package",
            "backup-ffi",
            "--message-format",
            "json",
            "--profile",
            profile,
            "--target-dir",
        ])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let files = String::from_utf8(built.stdout).unwrap();
    let messages = files.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let files = messages.flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default());
    let mut files = files.filter_map(|file| file.as_str().map(PathBuf::from));
    let suffix = std::env::consts::DLL_SUFFIX;
    files
        .find(|file| file.ends_with(format!("libpgark{suffix}")))
        .unwrap_or_else(|| panic!("no libpgark{suffix} was built"))
}
