//! PostgreSQL of several versions in containers, with the client tools of each.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use testcontainers_modules::postgres::Postgres;
use testcontainers_modules::testcontainers::core::IntoContainerPort;
use testcontainers_modules::testcontainers::runners::AsyncRunner;
use testcontainers_modules::testcontainers::{ContainerAsync, ImageExt};

pub struct PgContainer {
    _container: ContainerAsync<Postgres>,
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
    PgContainer { _container: container, major, host, port }
}

impl PgContainer {
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://postgres:s3cret@{}:{}/{database}", self.host, self.port)
    }
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
    if !folder.join("bin").exists() {
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
    for tool in ["pg_dump", "pg_restore", "psql"] {
        let root = folder.join("root");
        let root = root.display();
        let script = format!(
            "#!/bin/sh\nexec $(ls {root}/usr/lib64/ld-linux-*.so* {root}/usr/lib/ld-linux-*.so* {root}/usr/lib/*-linux-gnu/ld-linux-*.so* 2>/dev/null | head -1) \
             --library-path \"$(echo {root}/usr/lib/*-linux-gnu | tr ' ' :)\" {root}/usr/lib/postgresql/{major}/bin/{tool} \"$@\"\n"
        );
        run(&format!("cat > {new}/bin/{tool} <<'E'\n{script}E\nchmod 755 {new}/bin/{tool}"));
    }
    run(&format!("rm -rf {0}; mv {new} {0}", folder.display()));
}
