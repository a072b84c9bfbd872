//! The header is what the source says.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fmt::Write;
use std::path::Path;

use pgark::ErrorKind;

/// The statuses, from the table that the command's exit codes come from.
fn statuses() -> String {
    let mut text = String::from(
        "\n/**\n * What a function returns. The numbers never change their meaning; later versions add others.\n */\n",
    );
    text.push_str("enum pgark_status {\n    /** success */\n    PGARK_OK = 0,\n");
    for kind in ErrorKind::ALL {
        let mut name = String::new();
        for letter in kind.name().chars() {
            if letter.is_uppercase() {
                name.push('_');
            }
            name.push(letter.to_ascii_uppercase());
        }
        writeln!(text, "    /** {} */\n    PGARK{name} = {},", kind.describe(), kind.code()).unwrap();
    }
    text.push_str("};");
    text
}

fn generated() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config = cbindgen::Config::from_file(folder.join("cbindgen.toml")).unwrap();
    config.after_includes = Some(statuses());
    let mut header = Vec::new();
    cbindgen::Builder::new().with_crate(folder).with_config(config).generate().unwrap().write(&mut header);
    String::from_utf8(header).unwrap()
}

#[test]
fn the_header_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/pgark.h");
    let generated = generated();
    if std::env::var_os("PGARK_UPDATE_HEADER").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = committed.lines().zip(generated.lines()).position(|(a, b)| a != b).map_or(0, |n| n + 1);
    assert!(
        committed == generated,
        "{} is not what the source says (line {differs}): run the test with PGARK_UPDATE_HEADER=1 and commit the file",
        path.display()
    );
}
