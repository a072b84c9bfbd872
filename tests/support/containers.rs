//! PostgreSQL of several versions in containers, with the client tools of each.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use testcontainers_modules::postgres::Postgres;
use testcontainers_modules::testcontainers::core::IntoContainerPort;
use testcontainers_modules::testcontainers::runners::AsyncRunner;
use testcontainers_modules::testcontainers::{ContainerAsync, ImageExt};

pub struct PgContainer {
    container: ContainerAsync<Postgres>,
    pub major: u32,
    host: String,
    port: u16,
}

pub async fn start(major: u32) -> PgContainer {
    let container = Postgres::default()
        .with_user("postgres")
        .with_password("s3cret")
        .with_tag(major.to_string())
        .with_startup_timeout(Duration::from_mins(2))
        .start()
        .await
        .unwrap_or_else(|e| panic!("tests need a Docker engine with the image postgres:{major}: {e}"));
    let host = container.get_host().await.unwrap().to_string();
    let port = container.get_host_port_ipv4(5432.tcp()).await.unwrap();
    PgContainer { container, major, host, port }
}

impl PgContainer {
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://postgres:s3cret@{}:{}/{database}", self.host, self.port)
    }

    /// Runs a script in it as root.
    pub fn script(&self, script: &str) {
        let mut command = Command::new("docker");
        let output = command
            .args(["exec", "--user", "root", self.container.id(), "sh", "-ec", script])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Copies a file of this host into it.
    pub fn copy_in(&self, from: &Path, to: &str) {
        let to = format!("{}:{to}", self.container.id());
        let copied = Command::new("docker").arg("cp").arg(from).arg(to).output().unwrap();
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    }

    /// The image lets replication in from its own host alone; this lets it in from everywhere.
    pub async fn let_replication_in(&self) {
        let session = super::connect(&self.url("postgres")).await;
        let line = "COPY (SELECT 'host replication all all scram-sha-256') TO PROGRAM 'cat >> \"$PGDATA/pg_hba.conf\"'";
        session.rows(line).await.unwrap();
        session.rows("SELECT pg_reload_conf()").await.unwrap();
    }
}

/// A server that summarizes its WAL, and a session. What is done to its tables is done by the test alone.
pub async fn with_summaries(major: u32) -> (PgContainer, pgark::postgres::Session) {
    let container = start(major).await;
    container.let_replication_in().await;
    let session = super::connect(&container.url("postgres")).await;
    for setting in ["summarize_wal = on", "autovacuum = off"] {
        session.rows(&format!("ALTER SYSTEM SET {setting}")).await.unwrap();
    }
    session.rows("SELECT pg_reload_conf()").await.unwrap();
    (container, session)
}

/// What a script may say about the copy in `/restored/data`; `$bin` holds the server's programs.
const WORDS: &str = r#"
verify() {
    $bin/pg_verifybackup --quiet --ignore=postgresql.auto.conf --ignore=recovery.signal --ignore=pg_wal \
        --ignore=tablespace_map /restored/data >&2
}
verify_all() { $bin/pg_verifybackup --quiet "$1" >&2; }
query() { su postgres -c "psql -h /tmp -XAtF' ' -c '$1'"; }
start() {
    su postgres -c "$bin/pg_ctl -D /restored/data -l /tmp/log -o '-k /tmp' -w start" >&2 || { cat /tmp/log >&2; exit 1; }
    until [ "$(query 'SELECT pg_is_in_recovery()')" = f ]; do sleep 0.1; done
}
check() { su postgres -c "$bin/pg_amcheck -h /tmp --all --install-missing --heapallindexed" >&2; }
stop() { su postgres -c "$bin/pg_ctl -D /restored/data -m fast -w stop" >&2; }
"#;

/// Runs a script beside the copy in `folder`/data in a container of this version, and gives what it printed. The
/// folder's contents are gone afterwards: they belong to a user of the container's.
pub fn beside_the_copy(major: u32, folder: &Path, script: &str) -> String {
    let script = format!(
        "set -e; trap 'rm -rf /restored/*' EXIT; chown -R postgres /restored
         bin=$(dirname $(find / -name pg_verifybackup -not -path '/proc/*' -path '*/{major}/*' | head -n 1))\n{WORDS}\n{script}"
    );
    let output = Command::new("docker")
        .args(["run", "--rm", "--user", "root", "--entrypoint", "bash"])
        .args(["--volume", &format!("{}:/restored", folder.display())])
        .args([&format!("postgres:{major}"), "-c", &script])
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Folder with the client tools of a version: taken out of its image, with the libraries that they need, and
/// run by the image's own loader. So one machine has those of every version.
pub fn tools(major: u32) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join("target/test-tools");
    let root = if Path::new(env!("CARGO_MANIFEST_DIR")).join("crates").exists() {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools")
    } else {
        root
    };
    std::fs::create_dir_all(&root).unwrap();
    // One lock for all test processes; the folder appears whole or not at all.
    let lock = std::fs::File::create(root.join("lock")).unwrap();
    lock.lock().unwrap();
    let folder = root.canonicalize().unwrap().join(major.to_string());
    if !folder.join("bin/pg_dumpall").exists() {
        extract(major, &folder);
    }
    folder.join("bin")
}

fn extract(major: u32, folder: &Path) {
    let run = |command: &str| {
        let output = Command::new("bash").args(["-euo", "pipefail", "-c", command]).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let (new, image) = (folder.with_extension("new"), format!("postgres:{major}"));
    let new = new.display();
    run(&format!(
        "rm -rf {new}; mkdir -p {new}/root {new}/bin; id=$(docker create {image}); trap 'docker rm -f $id >/dev/null' EXIT
         docker export $id | tar x -C {new}/root --wildcards 'usr/lib/postgresql/*/bin' 'usr/lib/*-linux-gnu/*.so*' 'lib*' 'usr/lib64*'"
    ));
    for tool in ["pg_dump", "pg_dumpall", "pg_restore", "psql"] {
        let root = folder.join("root");
        let root = root.display();
        let script = format!(
            "#!/bin/sh\nexec $(ls {root}/usr/lib64/ld-linux-*.so* {root}/usr/lib/ld-linux-*.so* {root}/usr/lib/*-linux-gnu/ld-linux-*.so* 2>/dev/null | head -1) \
             --argv0 \"$0\" --library-path \"$(echo {root}/usr/lib/*-linux-gnu | tr ' ' :)\" {root}/usr/lib/postgresql/{major}/bin/{tool} \"$@\"\n"
        );
        run(&format!("cat > {new}/bin/{tool} <<'E'\n{script}E\nchmod 755 {new}/bin/{tool}"));
    }
    run(&format!("rm -rf {0}; mv {new} {0}", folder.display()));
}
