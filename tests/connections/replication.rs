//! Replication commands: over every kind of login, a base backup that PostgreSQL's own tools find whole, and
//! WAL without a gap.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use pgark::ErrorKind::{Auth, Database};
use pgark::postgres::{
    BaseBackupEnd, BaseBackupOptions, Item, Lsn, Replication, Session, TempServer, WalMessage, WalPosition,
};

use crate::certificates::Authority;
use crate::support::{server, sql};
use crate::{listening, serve, with_tls};

async fn connect(settings: &str) -> Session {
    pgark::postgres::ConnInfo::resolve(settings, &crate::nothing()).unwrap().connect().await.unwrap()
}

async fn identifier(server: &TempServer) -> u64 {
    let rows = sql(server, "postgres", "SELECT system_identifier FROM pg_control_system()").await;
    rows[0][0].as_ref().unwrap().parse().unwrap()
}

#[tokio::test]
async fn replication_logs_in_as_sql_does() {
    let authority = Authority::new("root");
    let server = listening(
        &[
            "hostssl replication,all bob 127.0.0.1/32 scram-sha-256",
            "hostnossl replication alice 127.0.0.1/32 md5",
            "hostssl replication dave 127.0.0.1/32 scram-sha-256",
            "host all all 127.0.0.1/32 trust",
        ],
        |options| serve(options, &authority.server(&["localhost"])),
    );
    sql(&server, "postgres", "CREATE ROLE bob LOGIN REPLICATION PASSWORD 's3cret'").await;
    sql(&server, "postgres", "CREATE ROLE carol LOGIN; CREATE ROLE dave LOGIN REPLICATION PASSWORD 's3cret'")
        .await;
    let md5 = "SET password_encryption = md5; CREATE ROLE alice LOGIN REPLICATION PASSWORD 's3cret'";
    sql(&server, "postgres", md5).await;
    let folder = tempfile::tempdir().unwrap();
    let root = crate::write(folder.path(), "root.crt", &authority.pem(), 0o644);
    let base = format!("host=localhost hostaddr=127.0.0.1 port={} dbname=postgres", server.port());
    for tls in [
        format!("user=bob sslmode=verify-full sslrootcert={root} channel_binding=require"),
        "user=bob sslmode=require".to_owned(),
        "user=bob sslmode=prefer".to_owned(),
        "user=alice sslmode=disable".to_owned(),
        "user=alice sslmode=allow".to_owned(),
    ] {
        let session = connect(&format!("{base} {tls} password=s3cret")).await;
        let mut replication = session.replication().await.unwrap();
        assert_eq!(replication.identify().await.unwrap().identifier, identifier(&server).await, "{tls}");
        assert_eq!(replication.setting("wal_segment_size").await.unwrap(), "16MB");
    }
    // Without TLS there is no line for dave, a wrong password is wrong, and carol lacks the right.
    for (settings, words) in [
        ("sslmode=disable user=dave password=s3cret", "does not let user dave in"),
        ("sslmode=require user=dave password=wrong", "password of user dave"),
        ("sslmode=require user=carol", "does not let user carol in"),
    ] {
        let session = connect(&format!("{base} {settings}")).await;
        let error = session.replication().await.err().unwrap();
        assert_eq!(error.kind(), Auth, "{error:?}");
        assert!(error.to_string().contains(words) && error.hint().is_some(), "{error:?}");
    }
}

#[tokio::test]
async fn the_right_to_replicate_is_asked_for() {
    let authority = Authority::new("root");
    let hba = &["host replication,all all 127.0.0.1/32 trust"];
    let server = with_tls(&authority.server(&["localhost"]), hba);
    sql(&server, "postgres", "CREATE ROLE carol LOGIN").await;
    for mode in ["disable", "require"] {
        let settings =
            format!("host=127.0.0.1 port={} dbname=postgres user=carol sslmode={mode}", server.port());
        let error = connect(&settings).await.replication().await.err().unwrap();
        assert_eq!(error.kind(), Auth, "{error:?}");
        assert!(error.to_string().contains("may not replicate"), "{error:?}");
    }
}

/// Unpacks a base backup with `tar`, as it comes.
async fn unpack(replication: Replication, into: &Path) -> (WalPosition, BaseBackupEnd, Replication) {
    let mut options = BaseBackupOptions::default();
    "it's a test".clone_into(&mut options.label);
    options.fast_checkpoint = true;
    let mut backup = replication.base_backup(&options).await.unwrap();
    let start = backup.start;
    assert_eq!(backup.tablespaces.len(), 1, "{:?}", backup.tablespaces);
    let (mut tar, mut manifest, mut sent) = (None, None, 0);
    while let Some(item) = backup.next().await.unwrap() {
        match item {
            Item::Archive { name, location } => {
                assert_eq!((name.as_str(), location.as_str()), ("base.tar", ""));
                let command = Command::new("tar").arg("-xC").arg(into).stdin(Stdio::piped()).spawn().unwrap();
                tar = Some(command);
            }
            Item::Manifest => manifest = Some(Vec::new()),
            Item::Data(bytes) => match (&mut manifest, &mut tar) {
                (Some(manifest), _) => manifest.extend_from_slice(&bytes),
                (None, Some(tar)) => tar.stdin.as_mut().unwrap().write_all(&bytes).unwrap(),
                _ => panic!("data before anything has begun"),
            },
            Item::Progress(bytes) => {
                assert!(bytes >= sent);
                sent = bytes;
            }
        }
    }
    let (end, replication) = backup.finish().await.unwrap();
    assert!(tar.unwrap().wait_with_output().unwrap().status.success());
    std::fs::write(into.join("backup_manifest"), manifest.unwrap()).unwrap();
    assert!(sent > 1_000_000);
    (start, end, replication)
}

/// WAL from the beginning of a segment to a position, as one piece.
async fn wal(replication: &mut Replication, from: WalPosition, to: Lsn) -> Vec<u8> {
    let mut stream = replication.stream_wal(Some("pgark_test"), from).await.unwrap();
    let mut wal = Vec::new();
    while from.lsn.0 + (wal.len() as u64) < to.0 {
        match stream.next().await.unwrap() {
            WalMessage::Data { bytes, .. } => wal.extend_from_slice(&bytes),
            WalMessage::Keepalive { answer, .. } => {
                let at = Lsn(from.lsn.0 + wal.len() as u64);
                if answer {
                    stream.confirm(at, at).await.unwrap();
                }
            }
            WalMessage::End(_) => panic!("the timeline does not end"),
        }
    }
    stream.finish().await.unwrap();
    wal
}

#[tokio::test]
async fn a_base_backup_and_its_wal_are_whole() {
    const SEGMENT: usize = 16 << 20;
    let server = server();
    sql(
        &server,
        "postgres",
        "CREATE TABLE t AS SELECT n, repeat('x', 100) FROM generate_series(1, 100000) n",
    )
    .await;
    let session = connect(&server.url("postgres")).await;
    let (mut commands, files) = (session.replication().await.unwrap(), session.replication().await.unwrap());
    let folder = tempfile::tempdir().unwrap();
    commands.create_slot("pgark_test", true).await.unwrap();
    let kept_from = commands.slot_position("pgark_test").await.unwrap().unwrap();
    let (start, end, mut files) = unpack(files, folder.path()).await;
    assert!(
        kept_from <= start.lsn && start.lsn < end.end.lsn && start.timeline == 1,
        "{kept_from} {start:?} {end:?}"
    );
    assert_eq!((end.checksum_failures, end.warnings), (None, vec![]));
    // The connection takes the next command.
    assert_eq!(files.identify().await.unwrap().identifier, identifier(&server).await);

    let first = WalPosition { lsn: Lsn(start.lsn.0 & !(SEGMENT as u64 - 1)), ..start };
    sql(&server, "postgres", "SELECT pg_switch_wal()").await;
    let wal = wal(&mut commands, first, end.end.lsn).await;
    for (n, segment) in (first.lsn.0 / SEGMENT as u64..).zip(wal.chunks(SEGMENT)) {
        let name = format!("00000001{:08X}{:08X}", n / 256, n % 256);
        let mut whole = segment.to_vec();
        whole.resize(SEGMENT, 0);
        std::fs::write(folder.path().join("pg_wal").join(name), whole).unwrap();
    }
    // It reads the manifest's files and, with pg_waldump, the WAL that recovery needs.
    let verify = Command::new(server.bin().join("pg_verifybackup")).arg(folder.path()).output().unwrap();
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stderr));

    // What cannot be had is an error in the server's words, and the connection goes on.
    let error = commands.stream_wal(None, WalPosition { timeline: 7, ..first }).await.err().unwrap();
    assert_eq!(error.kind(), Database, "{error:?}");
    assert_eq!(commands.slot_position("nothing").await.unwrap(), None);
    assert!(commands.timeline_history(2).await.is_err());
    drop(commands);
}
