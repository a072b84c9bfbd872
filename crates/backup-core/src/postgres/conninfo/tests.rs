use std::os::unix::fs::PermissionsExt;

use super::*;

fn environment(pairs: &[(&str, &str)]) -> Environment {
    Environment {
        variables: pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect(),
        home: None,
        user: Some("osuser".to_owned()),
    }
}

fn resolve(text: &str) -> ConnInfo {
    ConnInfo::resolve(text, &environment(&[])).unwrap()
}

#[test]
fn the_notations_say_the_same() {
    for text in [
        "host=db1 port=5433 user=ann dbname='my shop' sslmode=require password=s3",
        "postgresql://ann:s3@db1:5433/my%20shop?sslmode=require",
        "postgres://ann:s3@db1:5433/my%20shop?ssl=true",
    ] {
        let info = resolve(text);
        assert_eq!(info.hosts(), [Host { name: "db1".into(), address: None, port: 5433 }], "{text}");
        assert_eq!((info.user(), info.database(), info.get("sslmode")), ("ann", "my shop", Some("require")));
        assert_eq!(info.password(&info.hosts()[0]).unwrap().as_deref(), Some("s3"));
    }
}

#[test]
fn several_hosts_ipv6_and_sockets() {
    let info = resolve("postgresql://a:1,[::1]:2,c/db");
    let shown: Vec<String> = info.hosts().iter().map(Host::to_string).collect();
    assert_eq!(shown, ["a:1", "::1:2", "c:5432"]);
    let info = resolve("host=/tmp,db2 port=7");
    assert_eq!(info.hosts()[0].to_string(), "/tmp/.s.PGSQL.7");
    assert!(info.hosts()[0].is_socket() && !info.hosts()[1].is_socket());
    let info = resolve("postgresql:///db?host=/tmp&port=8");
    assert_eq!((info.hosts()[0].to_string().as_str(), info.database()), ("/tmp/.s.PGSQL.8", "db"));
}

#[test]
fn quotes_and_escapes() {
    let info = resolve(r"password = 'a b\'c\\d' dbname=x\ y");
    assert_eq!(info.get("password"), Some(r"a b'c\d"));
    assert_eq!(info.database(), "x y");
}

#[test]
fn defaults_and_environment() {
    let info = ConnInfo::resolve("", &environment(&[("PGHOST", "h"), ("PGPORT", "99"), ("PGDATABASE", "d")]))
        .unwrap();
    assert_eq!((info.hosts()[0].to_string().as_str(), info.database(), info.user()), ("h:99", "d", "osuser"));
    let info = ConnInfo::resolve("host=mine", &environment(&[("PGHOST", "h"), ("PGUSER", "u")])).unwrap();
    assert_eq!((info.hosts()[0].name.as_str(), info.database()), ("mine", "u"));
    assert_eq!(resolve("shop").database(), "shop");
}

#[test]
fn a_service_stands_between_string_and_environment() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("services");
    std::fs::write(&file, "# c\n[other]\nhost=no\n[prod]\nhost = db9\nuser=svc\nport=7\n[last]\nuser=no\n")
        .unwrap();
    let environment =
        environment(&[("PGSERVICEFILE", file.to_str().unwrap()), ("PGUSER", "env"), ("PGPORT", "8")]);
    let info = ConnInfo::resolve("service=prod port=6", &environment).unwrap();
    assert_eq!((info.hosts()[0].to_string().as_str(), info.user()), ("db9:6", "svc"));
    let error = ConnInfo::resolve("service=nowhere", &environment).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
}

#[test]
fn the_password_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pass");
    std::fs::write(
        &file,
        "# c\nother:*:*:*:no\ndb:5432:shop:ann:a\\:b:c\nlocalhost:*:*:*:sock\n*:*:*:ann:any\n",
    )
    .unwrap();
    let with = |text: &str| {
        let info = resolve(&format!("{text} passfile={}", file.display()));
        info.password(&info.hosts()[0]).unwrap()
    };
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(with("host=db dbname=shop user=ann").as_deref(), Some("a:b:c"));
    assert_eq!(with("host=db dbname=x user=ann").as_deref(), Some("any"));
    assert_eq!(with("host=/tmp dbname=x user=bob").as_deref(), Some("sock"));
    assert_eq!(with("host=db dbname=x user=bob"), None);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(with("host=db dbname=shop user=ann"), None, "a file that others can read is not used");
}

#[test]
fn what_is_wrong_is_refused_without_showing_secrets() {
    for text in [
        "nonsense=1",
        "host=a port=x",
        "host=a port=0",
        "password='s3cret",
        "host=a s3cret",
        "password=my s3cret=1",
        "postgresql://u:s3cret",
        "postgresql://u:s3cret/word@h/d",
        "sslcertmode=require",
        "postgresql://u:%zz@h/d",
        "port=1,2 host=a",
        "sslcrl=/x",
        "gssencmode=require",
    ] {
        let error = ConnInfo::resolve(text, &environment(&[])).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Usage | ErrorKind::Unsupported), "{text}");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }
    assert!(!format!("{:?}", resolve("password=s3cret")).contains("s3cret"));
}

#[test]
fn tools_get_the_same_settings_by_environment() {
    let info = resolve("host=a,b port=1,2 user=u dbname=d password=p sslmode=verify-full");
    let environment = info.at(&info.hosts()[1].clone()).tool_environment().unwrap();
    let get = |name: &str| environment.iter().find(|(n, _)| *n == name).and_then(|(_, v)| v.to_str());
    assert_eq!((get("PGHOST"), get("PGPORT"), get("PGUSER")), (Some("b"), Some("2"), Some("u")));
    assert_eq!(
        (get("PGDATABASE"), get("PGPASSWORD"), get("PGSSLMODE")),
        (Some("d"), Some("p"), Some("verify-full"))
    );
    // Without a home of its own, a tool would use that of this process.
    assert_eq!((get("HOME"), get("PGCONNECT_TIMEOUT")), (Some("/nonexistent"), Some("30")));
}
