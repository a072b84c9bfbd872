//! Scripts that travel as one line.

/// A script for `sh`. It is one line, since `read` takes no more than that and leaves the rest to what the script
/// runs.
pub(in crate::postgres) struct Script(String);

impl Script {
    pub(in crate::postgres) fn new() -> Self {
        // A newline, for what is quoted: `$(…)` takes those at the end away.
        Self("newline=$(printf '\\n.'); newline=${newline%.}; ".to_owned())
    }

    /// Sets a variable.
    #[must_use]
    pub(in crate::postgres) fn set(mut self, name: &str, value: &str) -> Self {
        self.push(&[name, "=", &quote(value), "; "]);
        self
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub(in crate::postgres) fn export(mut self, name: &str, value: &str) -> Self {
        self.push(&["export ", name, "=", &quote(value), "; "]);
        self
    }

    /// Takes a variable away.
    #[must_use]
    pub(in crate::postgres) fn unset(mut self, name: &str) -> Self {
        self.push(&["unset ", name, "; "]);
        self
    }

    /// Sets `$1` and so on.
    #[must_use]
    pub(in crate::postgres) fn arguments<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        self.0 += "set --";
        for argument in arguments {
            self.push(&[" ", &quote(argument)]);
        }
        self.0 += "; ";
        self
    }

    /// The line, to the end of which `text` runs.
    pub(in crate::postgres) fn line(mut self, text: &str) -> Vec<u8> {
        self.push(&["eval ", &quote(text), "\n"]);
        self.0.into_bytes()
    }

    fn push(&mut self, pieces: &[&str]) {
        self.0.extend(pieces.iter().copied());
    }
}

/// A text as one word of a line.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''").replace('\n', "'\"$newline\"'"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::Script;

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]

        /// What `sh` makes of it is what was given, and the rest of the input is left.
        #[test]
        fn every_value_arrives(values in proptest::collection::vec("[^\0]{0,20}", 1..4), rest in "[^\0]{0,20}") {
            let script = Script::new()
                .export("LC_ALL", "C")
                .set("first", &values[0])
                .arguments(values.iter().map(String::as_str));
            let text = "printf '%s\\0' \"$first\" \"$@\"\nexec cat";
            let mut child = Command::new("sh")
                .args(["-c", "IFS= read -r line && eval \"$line\""])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut stdin = child.stdin.take().unwrap();
            stdin.write_all(&script.line(text)).unwrap();
            stdin.write_all(rest.as_bytes()).unwrap();
            drop(stdin);
            let told = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
            let mut wanted = values.clone();
            wanted.insert(0, values[0].clone());
            proptest::prop_assert_eq!(told, format!("{}\0{rest}", wanted.join("\0")));
        }
    }
}
