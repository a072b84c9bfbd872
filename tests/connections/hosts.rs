//! Several hosts, and those that are none.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use futures::future::join_all;
use pgark::ErrorKind::{Auth, Connect, Usage};
use pgark::postgres::ConnInfo;

use crate::support::{free_port, sql};
use crate::{Fails, Plain, expect, expect_alone, listening, nothing};

const ANYBODY: &[&str] = &["host all all all trust"];

#[tokio::test]
async fn the_first_fitting_host_is_taken() {
    let primary = listening(ANYBODY, |_| ());
    let read_only =
        listening(ANYBODY, |options| options.settings.push("default_transaction_read_only = on".into()));
    // It recovers without end from what it has itself: a standby without a primary. initdb made it with the
    // default number of connections, and a standby must not have fewer.
    let standby = listening(ANYBODY, |options| {
        options.files.push(("standby.signal".into(), String::new()));
        options.settings.push("max_connections = 100".into());
    });
    let dead = free_port();
    let names = [
        (dead, "dead"),
        (primary.port(), "primary"),
        (read_only.port(), "read_only"),
        (standby.port(), "standby"),
    ];
    let port = |name: &str| names.iter().find(|(_, n)| *n == name).unwrap().0;
    for (hosts, wanted, found) in [
        (&["dead", "primary", "standby"][..], "any", "primary"),
        (&["dead", "standby", "read_only", "primary"], "", "standby"),
        (&["dead", "standby", "read_only", "primary"], "read-write", "primary"),
        (&["primary", "read_only", "standby"], "read-only", "read_only"),
        (&["standby", "read_only", "primary"], "primary", "read_only"),
        (&["dead", "primary", "read_only", "standby"], "standby", "standby"),
        (&["dead", "primary", "standby"], "prefer-standby", "standby"),
        (&["dead", "primary", "read_only"], "prefer-standby", "primary"),
    ] {
        let list: Vec<String> = hosts.iter().map(|name| format!("127.0.0.1:{}", port(name))).collect();
        let target =
            if wanted.is_empty() { String::new() } else { format!("&target_session_attrs={wanted}") };
        let uri = format!("postgresql://postgres@{}/postgres?connect_timeout=5{target}", list.join(","));
        let session = ConnInfo::resolve(&uri, &nothing())
            .unwrap()
            .connect()
            .await
            .unwrap_or_else(|e| panic!("{uri}: {e:?}"));
        let there: u16 = session.value("SELECT inet_server_port()").await.unwrap().unwrap().parse().unwrap();
        assert_eq!(there, port(found), "{hosts:?} {wanted}");
        // Client tools go to the same one.
        assert_eq!(session.info().hosts().iter().map(|h| h.port).collect::<Vec<_>>(), [there]);
    }
    let all = |names: &[&str]| names.iter().map(|n| port(n).to_string()).collect::<Vec<_>>().join(",");
    for (hosts, wanted, word) in [
        (&["read_only", "standby"][..], "read-write", "target_session_attrs"),
        (&["dead", "primary"], "standby", "target_session_attrs"),
        (&["dead", "dead"], "any", "no server answers"),
    ] {
        let settings = format!(
            "host=127.0.0.1,127.0.0.1 port={} user=postgres target_session_attrs={wanted}",
            all(hosts)
        );
        expect(&settings, &nothing(), Fails(Connect, word)).await;
    }
    let settings = format!("host=127.0.0.1 port={} user=postgres target_session_attrs=main", primary.port());
    expect(&settings, &nothing(), Fails(Usage, "main")).await;
    // A server that is there and refuses is the end of the search, as in libpq.
    sql(&primary, "postgres", "CREATE ROLE here").await;
    let settings =
        format!("host=127.0.0.1,127.0.0.1 port={} user=here dbname=postgres", all(&["primary", "standby"]));
    expect(&settings, &nothing(), Fails(Auth, "here")).await;
}

#[tokio::test]
async fn a_server_without_a_free_connection_is_passed_over() {
    let server = listening(ANYBODY, |_| ());
    let full = listening(ANYBODY, |options| {
        options.settings.push("max_connections = 4\nsuperuser_reserved_connections = 3".into());
    });
    sql(&full, "postgres", "CREATE ROLE plain LOGIN").await;
    sql(&server, "postgres", "CREATE ROLE plain LOGIN").await;
    let one = ConnInfo::resolve(
        &format!("host=127.0.0.1 port={} user=plain dbname=postgres", full.port()),
        &nothing(),
    )
    .unwrap();
    let _held = one.connect().await.unwrap();
    let settings = format!("host=127.0.0.1 port={} user=plain dbname=postgres", full.port());
    expect(&settings, &nothing(), Fails(Connect, "remaining connection slots")).await;
    let settings =
        format!("host=127.0.0.1,127.0.0.1 port={},{} user=plain dbname=postgres", full.port(), server.port());
    // libpq would stop here: it goes on only where a server starts up or shuts down.
    expect_alone(&settings, &nothing(), Plain).await;
}

#[tokio::test]
async fn what_is_no_postgresql_ends_in_time() {
    // Connections wait in its queue, and nobody ever answers them.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let in_time = async |port: u16, mode: &str, ends: &[(pgark::ErrorKind, &str)]| {
        let settings = format!("host=127.0.0.1 port={port} user=u connect_timeout=2 sslmode={mode}");
        let begun = Instant::now();
        let error = ConnInfo::resolve(&settings, &nothing()).unwrap().connect().await.err().unwrap();
        let fits = ends.iter().any(|(kind, word)| error.kind() == *kind && error.to_string().contains(word));
        assert!(fits && error.hint().is_some(), "{mode}: {error:?}");
        // Both ways of `prefer` together take no longer than one.
        assert!(begun.elapsed() < Duration::from_secs(7), "{mode}: {:?}", begun.elapsed());
    };
    let modes = ["disable", "allow", "prefer", "require"];
    join_all(modes.map(|mode| in_time(silent_port, mode, &[(Connect, "says nothing")]))).await;
    // It answers, in another language, and hangs up or waits.
    for hangs_up in [true, false] {
        let web = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = web.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for mut client in web.incoming().flatten() {
                let _ = client.read(&mut [0; 64]);
                let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
                if !hangs_up {
                    kept.push(client);
                }
            }
        });
        let ends =
            [(Connect, "says nothing"), (Connect, "hung up"), (Connect, "is not PostgreSQL"), (Auth, "TLS")];
        join_all(modes.map(|mode| in_time(port, mode, &ends))).await;
    }
    expect(
        &format!("host=127.0.0.1 port={} user=u", free_port()),
        &nothing(),
        Fails(Connect, "no server answers"),
    )
    .await;
    expect("host=nowhere.invalid user=u", &nothing(), Fails(Connect, "nowhere.invalid")).await;
    expect("hostaddr=localhost user=u", &nothing(), Fails(Usage, "localhost")).await;
    expect("host=127.0.0.1 user=u connect_timeout=soon", &nothing(), Fails(Usage, "soon")).await;
}
