use super::*;

#[test]
fn what_is_written_is_read() {
    for text in [
        "docker:shop-db",
        "docker:0f3a9c",
        "kubectl:shop-0",
        "kubectl:prod/shop-0",
        "kubectl:prod/shop-0:postgres",
        "kubectl:shop-0:postgres",
        "ssh:db1",
        "ssh:postgres@db1.example",
        "ssh:postgres@db1:2222",
        "ssh:::1",
    ] {
        assert_eq!(text.parse::<Via>().unwrap().to_string(), text);
    }
    let via: Via = "ssh:postgres@db1:2222".parse().unwrap();
    assert_eq!(via, Via::Ssh { destination: "postgres@db1".to_owned(), port: Some(2222) });
}

#[test]
fn what_could_be_an_option_or_makes_no_sense_is_refused() {
    for (text, word) in [
        ("shop-db", "does not say"),
        ("podman:x", "\"podman\" is not known"),
        ("docker:", "container is missing"),
        ("docker:-it", "no name of a container"),
        ("docker:a b", "no name of a container"),
        ("kubectl:-n/x", "no name of a namespace"),
        ("kubectl:prod/", "pod is missing"),
        ("kubectl:x:", "container is missing"),
        ("ssh:", "host or the user is missing"),
        ("ssh:-oProxyCommand=x", "no name of a host"),
        ("ssh:me@-oProxyCommand=x", "no name of a host"),
        ("ssh:@db1", "host or the user is missing"),
        ("ssh:db1:ssh", "the port"),
        ("ssh:db 1", "no name of a host"),
    ] {
        let error = text.parse::<Via>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{text}");
        assert!(error.to_string().contains(word), "{text}: {error}");
        assert!(error.hint().unwrap().contains("docker:CONTAINER"), "{text}");
    }
}

#[test]
fn no_argument_holds_a_script() {
    let arguments = |text: &str| -> Vec<String> {
        let command = text.parse::<Via>().unwrap().shell();
        command.as_std().get_args().map(|a| a.to_string_lossy().into_owned()).collect()
    };
    let read = "IFS= read -r line && eval \"$line\"";
    assert_eq!(arguments("docker:db"), ["exec", "-i", "db", "sh", "-c", read]);
    let wanted = ["exec", "--stdin", "--quiet", "db-0", "--namespace", "prod", "--container", "pg", "--"];
    assert_eq!(arguments("kubectl:prod/db-0:pg")[..9], wanted);
    let ssh = arguments("ssh:me@db:2222");
    assert_eq!(ssh[ssh.len() - 4..], ["-p", "2222", "me@db", &format!("exec sh -c '{read}'")]);
}
