//! `--via`: the command reaches servers through a container, a pod or another host, and leaves nothing there.

#![allow(clippy::unwrap_used, missing_docs)]

mod cli;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cli::{Pgark, hold, until, until_pg_dump_waits};
use pgark::ErrorKind;
use pgark::postgres::{TempServer, TempServerOptions};
use rustix::process::{Pid, Signal, kill_process};
use support::{fingerprint, free_port, left_out, sample, server_with, sql};
use testcontainers_modules::postgres::Postgres;
use testcontainers_modules::testcontainers::runners::AsyncRunner;
use testcontainers_modules::testcontainers::{ContainerAsync, ImageExt};

/// A container that no port leads to. Its image trusts what comes from within.
async fn container() -> ContainerAsync<Postgres> {
    let image = Postgres::default().with_tag("17").with_network("none");
    let started = image.with_startup_timeout(Duration::from_mins(2)).start().await;
    started.unwrap_or_else(|e| panic!("tests need a Docker engine with the image postgres:17: {e}"))
}

fn psql(container: &str, database: &str, sql: &str) -> String {
    let psql = ["psql", "-XAtqU", "postgres", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql];
    let output = Command::new("docker").args(["exec", container]).args(psql).output().unwrap();
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

const COUNTS: &str = "SELECT count(*), sum(hashtextextended(p::text, 7)) FROM people p";

#[tokio::test(flavor = "multi_thread")]
async fn a_container_of_the_configuration() {
    if left_out("docker") {
        return;
    }
    let container = container().await;
    let id = container.id();
    psql(id, "postgres", &sample(2000));
    let pgark = Pgark::new();
    let config = pgark.write(
        "pgark.toml",
        &format!(
            "[repository]\nurl = \"repo\"\n[cluster.shop]\ndb = \"user=postgres\"\nvia = \"docker:{id}\"\n"
        ),
    );
    let looked = pgark.json(&["backup", "--config", &config, "--dry-run"]);
    assert_eq!(looked["preview"]["database"], "postgres");
    pgark.json(&["backup", "--config", &config]);
    let via = format!("docker:{id}");
    let into = ["restore", "--config", &config, "--into", "user=postgres dbname=copy", "--via", &via];
    pgark.json(&into);
    assert_eq!(psql(id, "copy", COUNTS), psql(id, "postgres", COUNTS));
    // A restore goes where the command line says: here nothing answers.
    let nowhere = format!("host={} user=postgres dbname=other", pgark.place("nowhere"));
    pgark.fails(&["restore", "--config", &config, "--into", &nowhere], ErrorKind::Connect).says("nowhere");
    // The command line goes before the file.
    let other = ["backup", "--config", &config, "--via", "docker:pgark-no-such-container"];
    pgark.fails(&other, ErrorKind::Connect).says("No such container");
}

#[test]
fn a_place_that_makes_no_sense_is_refused() {
    let pgark = Pgark::new();
    for place in ["podman:x", "docker:--help", "ssh:-oProxyCommand=x"] {
        let output = pgark.run(&["backup", "--repo", "repo", "--via", place]);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{words}");
        assert!(words.contains("is no place to go through") && words.contains("docker:CONTAINER"), "{words}");
    }
}

/// Kills at once, and waits.
fn kill(mut child: Child) {
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_pgark_leaves_nothing_in_the_container() {
    if left_out("docker") {
        return;
    }
    let container = container().await;
    let id = container.id();
    psql(id, "postgres", "CREATE TABLE t AS SELECT 1 AS x");
    let checkpointer = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
    let before = psql(id, "postgres", checkpointer);
    let mut holder = Command::new("docker")
        .args(["exec", "-i", id, "psql", "-XAtqU", "postgres"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let locks = b"SET application_name = 'held'; BEGIN; LOCK TABLE t;\n";
    std::io::Write::write_all(holder.stdin.as_mut().unwrap(), locks).unwrap();
    let count = |wanted: &str, which: &str| {
        let begun = Instant::now();
        let sql = format!("SELECT count(*) > 0 FROM pg_stat_activity WHERE {which}");
        while psql(id, "postgres", &sql) != wanted {
            assert!(begun.elapsed() < Duration::from_secs(30), "{which} is not {wanted}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    count("t", "application_name = 'held' AND state = 'idle in transaction'");
    let pgark = Pgark::new();
    let via = format!("docker:{id}");
    let args = ["backup", "--repo", "repo", "--db", "user=postgres", "--via", &via];
    let child = pgark.command(&args).spawn().unwrap();
    count("t", "application_name LIKE 'pgark %' AND wait_event_type = 'Lock'");
    kill(child);
    count("f", "application_name LIKE 'pgark%'");
    // The lock holder is still there, and so is the server.
    count("t", "application_name = 'held' AND state = 'idle in transaction'");
    assert_eq!(psql(id, "postgres", checkpointer), before, "the server was restarted");
    let top = Command::new("docker").args(["top", id, "-eo", "args"]).output().unwrap();
    let top = String::from_utf8_lossy(&top.stdout).into_owned();
    assert!(!top.contains("pg_dump") && !top.contains("perl"), "{top}");
    drop(holder.stdin.take());
    holder.wait().unwrap();
}

/// A program in a folder of its own, which comes first in PATH.
fn stand_in(pgark: &Pgark, name: &str, script: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = pgark.write(&format!("bin/{name}"), script);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let folder = Path::new(&path).parent().unwrap().display().to_string();
    format!("{folder}:{}", std::env::var("PATH").unwrap())
}

/// Not a cluster: a stand-in for `kubectl` takes its arguments apart as kubectl does, and has `docker` do it.
#[tokio::test(flavor = "multi_thread")]
async fn the_arguments_of_kubectl_lead_to_a_container() {
    if left_out("docker") {
        return;
    }
    let container = container().await;
    let id = container.id();
    psql(id, "postgres", &sample(2000));
    let pgark = Pgark::new();
    let script = format!(
        r#"#!/bin/sh
echo "$@" >> '{}'
[ "$1" = exec ] || exit 9; shift
pod=
while [ $# -gt 0 ]; do
    case $1 in
    --stdin) stdin=-i ;;
    --quiet) ;;
    --namespace) [ "$2" = prod ] || {{ echo 'Error from server (NotFound): namespaces "'$2'" not found' >&2; exit 1; }}; shift ;;
    --container) [ "$2" = postgres ] || {{ echo "error: container $2 is not valid for pod $pod" >&2; exit 1; }}; shift ;;
    --) shift; break ;;
    *) pod=$1 ;;
    esac
    shift
done
[ "$pod" = shop-0 ] || {{ echo "Error from server (NotFound): pods \"$pod\" not found" >&2; exit 1; }}
docker exec $stdin {id} "$@"
status=$?
[ $status = 0 ] || echo "command terminated with exit code $status" >&2
exit $status
"#,
        pgark.place("calls")
    );
    let path = stand_in(&pgark, "kubectl", &script);
    let pgark = pgark.with("PATH", &path);
    let via = "kubectl:prod/shop-0:postgres";
    pgark.json(&["backup", "--repo", "repo", "--db", "user=postgres", "--via", via]);
    pgark.json(&["restore", "--repo", "repo", "--into", "user=postgres dbname=copy", "--via", via]);
    assert_eq!(psql(id, "copy", COUNTS), psql(id, "postgres", COUNTS));
    for (via, word) in [
        ("kubectl:test/shop-0", "\"test\" not found"),
        ("kubectl:prod/shop-1", "\"shop-1\" not found"),
        ("kubectl:prod/shop-0:sidecar", "not valid for pod"),
    ] {
        let args = ["backup", "--repo", "repo", "--db", "user=postgres", "--via", via];
        let failure = pgark.fails(&args, ErrorKind::Connect);
        failure.says(word).says("kubectl get pods").says(via);
    }
    // The tool's own words are told, and not what kubectl adds to them.
    psql(id, "postgres", "CREATE ROLE ann LOGIN; REVOKE ALL ON SCHEMA public FROM PUBLIC");
    let args = ["backup", "--repo", "repo", "--db", "user=ann dbname=postgres", "--via", via];
    let failure = pgark.fails(&args, ErrorKind::Database);
    failure.says("permission denied");
    assert!(!failure.text.contains("command terminated"), "{}", failure.text);
}

/// An SSH server of this test's, its client's settings, and a `ssh` that uses them.
struct Ssh {
    server: Child,
    port: u16,
}

impl Drop for Ssh {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Ssh {
    /// Starts it. The pgark that comes back finds its keys.
    fn start(pgark: Pgark, more: &str) -> (Self, Pgark) {
        let port = free_port();
        for key in ["host_key", "user_key"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(pgark.path(key));
            assert!(keygen.status().unwrap().success());
        }
        std::fs::copy(pgark.path("user_key.pub"), pgark.path("authorized_keys")).unwrap();
        let config = pgark.write(
            "sshd_config",
            &format!(
                "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
                 PidFile none\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n{more}\n",
                pgark.place("host_key"),
                pgark.place("authorized_keys"),
            ),
        );
        if rustix::process::getuid().is_root() {
            std::fs::create_dir_all("/run/sshd").unwrap();
        }
        let program = "/usr/sbin/sshd";
        assert!(Path::new(program).exists(), "tests need an SSH server: install openssh-server");
        let log = std::fs::File::create(pgark.path("sshd.log")).unwrap();
        let server = Command::new(program).args(["-D", "-e", "-f", &config]).stderr(log).spawn().unwrap();
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "{}",
                std::fs::read_to_string(pgark.path("sshd.log")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        let known = std::fs::read_to_string(pgark.path("host_key.pub")).unwrap();
        pgark.write("known_hosts", &format!("[127.0.0.1]:{port} {known}"));
        let client = pgark.write(
            "ssh_config",
            &format!(
                "Host shop-db\n HostName 127.0.0.1\n Port {port}\n\
                 Host *\n IdentityFile {}\n IdentitiesOnly yes\n UserKnownHostsFile {}\n GlobalKnownHostsFile none\n",
                pgark.place("user_key"),
                pgark.place("known_hosts"),
            ),
        );
        let path = stand_in(&pgark, "ssh", &format!("#!/bin/sh\nexec /usr/bin/ssh -F '{client}' \"$@\"\n"));
        let pgark = pgark.with("PATH", &path);
        (Self { server, port }, pgark)
    }
}

/// The settings that lead to its socket.
fn socket_of(server: &TempServer) -> String {
    format!("host={} port={} user=postgres", server.folder().display(), server.port())
}

fn listening() -> TempServer {
    let mut options = TempServerOptions::default();
    options.port = Some(free_port());
    options.hba.push("host all all all scram-sha-256".into());
    server_with(&options)
}

#[tokio::test(flavor = "multi_thread")]
async fn over_ssh_to_a_socket_and_to_a_port() {
    if left_out("sshd") {
        return;
    }
    let server = listening();
    sql(&server, "postgres", &sample(2000)).await;
    sql(&server, "postgres", "CREATE ROLE ann SUPERUSER LOGIN PASSWORD 'it''s'").await;
    let session = server.conninfo("postgres").unwrap().connect().await.unwrap();
    let before = fingerprint(&session).await;
    let (ssh, pgark) = Ssh::start(Pgark::new(), "");
    let by_address = format!("ssh:127.0.0.1:{}", ssh.port);
    let socket = socket_of(&server);
    let port = format!("host=127.0.0.1 port={} user=ann password='it\\'s'", server.port());
    for (number, (via, settings)) in
        [("ssh:shop-db", &socket), ("ssh:shop-db", &port), (by_address.as_str(), &socket)]
            .into_iter()
            .enumerate()
    {
        pgark.json(&[
            "backup",
            "--repo",
            "repo",
            "--db",
            &format!("{settings} dbname=postgres"),
            "--via",
            via,
        ]);
        let copy = format!("copy_{number}");
        pgark.json(&[
            "restore",
            "--repo",
            "repo",
            "--into",
            &format!("{settings} dbname={copy}"),
            "--via",
            via,
        ]);
        let session = server.conninfo(&copy).unwrap().connect().await.unwrap();
        assert_eq!(fingerprint(&session).await, before, "{via} {settings}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ssh_says_is_told() {
    if left_out("sshd") {
        return;
    }
    let server = listening();
    let (ssh, pgark) = Ssh::start(Pgark::new(), "AllowTcpForwarding no");
    let socket = socket_of(&server);
    let port = format!("host=127.0.0.1 port={} user=ann password=x", server.port());
    let backup = |settings: &str, via: &str| {
        let args = ["backup", "--repo", "repo", "--db", settings, "--via", via];
        pgark.fails(&args, ErrorKind::Connect)
    };
    let refused = backup(&socket, &format!("ssh:127.0.0.1:{}", free_port()));
    refused.says("Connection refused").says("this must work on this host: ssh -p");
    backup(&port, "ssh:shop-db").says("administratively prohibited").says("AllowTcpForwarding");
    let args = ["backup", "--repo", "repo", "--db", &socket, "--via", "ssh:shop-db", "--pg-bin", "/nowhere"];
    pgark.fails(&args, ErrorKind::ToolMissing).says("not installed in ssh:shop-db").says("postgresql-client");
    pgark.write("known_hosts", "");
    backup(&socket, "ssh:shop-db").says("Host key verification failed").says("by hand");
    let known = std::fs::read_to_string(pgark.path("host_key.pub")).unwrap();
    pgark.write("known_hosts", &format!("[127.0.0.1]:{} {known}", ssh.port));
    pgark.write("authorized_keys", "");
    backup(&socket, "ssh:shop-db").says("Permission denied").says("ssh needs a key");
    let gone = pgark.with("PATH", "/nowhere");
    let args = ["backup", "--repo", "repo", "--db", &socket, "--via", "ssh:shop-db"];
    gone.fails(&args, ErrorKind::ToolMissing).says("ssh cannot be started").says("PATH");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_of_ssh_that_breaks_ends_pg_dump_there() {
    if left_out("sshd") {
        return;
    }
    let server = listening();
    sql(&server, "postgres", "CREATE TABLE t AS SELECT 1 AS x").await;
    let (_ssh, pgark) = Ssh::start(Pgark::new(), "");
    let held = hold(&server, "t").await;
    let socket = format!("{} dbname=postgres", socket_of(&server));
    let none =
        "SELECT 1 FROM pg_stat_activity HAVING count(*) FILTER (WHERE application_name LIKE 'pgark %') = 0";

    // No secret, and no setting, is in an argument: neither here nor there.
    let settings = format!("{socket} password=unt7ped-pa55");
    let config = pgark.write(
        "pgark.toml",
        &format!(
            "[repository]\nurl = \"repo\"\n[cluster.shop]\ndb = \"{settings}\"\nvia = \"ssh:shop-db\"\n"
        ),
    );
    let child = pgark.command(&["backup", "--config", &config]).spawn().unwrap();
    until_pg_dump_waits(&server).await;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&line).contains("unt7ped-pa55"), "the password is in an argument");
    }
    kill(child);
    until(&server, none, "a pg_dump is left after pgark was killed").await;

    // The client that leads there is killed: the backup fails, and nothing goes on there.
    let child = pgark
        .command(&["backup", "--repo", "repo", "--db", &socket, "--via", "ssh:shop-db"])
        .spawn()
        .unwrap();
    until_pg_dump_waits(&server).await;
    for ssh in children_of(child.id()) {
        kill_process(ssh, Signal::KILL).unwrap();
    }
    let output = child.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(13 | 21)), "{words}");
    until(&server, none, "a pg_dump is left after ssh was killed").await;
    pgark.assert_no_backup("repo");
    drop(held);
}

fn children_of(parent: u32) -> Vec<Pid> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let stats = processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    stats
        .filter_map(|stat| {
            let (head, tail) = stat.rsplit_once(") ")?;
            let of_parent = tail.split_whitespace().nth(1) == Some(&parent.to_string());
            of_parent.then(|| Pid::from_raw(head.split_whitespace().next()?.parse().ok()?)).flatten()
        })
        .collect()
}
