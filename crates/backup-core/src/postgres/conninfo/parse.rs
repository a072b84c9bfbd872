//! The two notations of a connection string.

use std::collections::BTreeMap;

use super::{Support, find_keyword};
use crate::error::{Error, ErrorKind, Result};

pub(super) type Values = BTreeMap<&'static str, String>;

pub(super) fn parse(text: &str) -> Result<Values> {
    let text = text.trim();
    let uri = ["postgresql://", "postgres://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    let parsed = match uri {
        Some(rest) => parse_uri(rest),
        None if text.contains('=') => parse_pairs(text),
        None => {
            let mut values = Values::new();
            if !text.is_empty() {
                values.insert("dbname", text.to_owned());
            }
            Ok(values)
        }
    };
    parsed.map_err(|e| e.doing("reading the connection settings"))
}

/// Sets a value, if pgark can honour it.
pub(super) fn set(values: &mut Values, name: &str, value: String) -> Result<()> {
    let keyword = find_keyword(name)?;
    let refused = keyword.support == Support::Refused
        || (matches!(name, "gssencmode" | "sslcertmode") && value == "require");
    if refused && !value.is_empty() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the connection setting {name} is not supported"),
        )
        .with_hint("leave it out, or connect through a Unix socket or a tunnel that gives the same safety"));
    }
    values.insert(keyword.name, value);
    Ok(())
}

fn wrong(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, why)
        .with_hint("write \"host=… dbname=…\" (values with spaces in single quotes) or postgresql://user@host:port/dbname")
}

/// `key = value` pairs; values may stand in single quotes, with `\'` and `\\`.
fn parse_pairs(text: &str) -> Result<Values> {
    let mut values = Values::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok(values);
        }
        let mut name = String::new();
        while let Some(c) = chars.next_if(|c| *c != '=' && !c.is_whitespace()) {
            name.push(c);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.next() != Some('=') {
            // The name may be half of a password with a space in it: do not repeat it.
            return Err(wrong("a \"=\" is missing after a name"));
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let mut value = String::new();
        let quoted = chars.next_if_eq(&'\'').is_some();
        loop {
            match chars.next() {
                Some('\\') => value.extend(chars.next()),
                Some('\'') if quoted => break,
                Some(c) if !quoted && c.is_whitespace() => break,
                Some(c) => value.push(c),
                None if quoted => return Err(wrong("a single quote is not closed")),
                None => break,
            }
        }
        set(&mut values, &name, value)?;
    }
}

/// What follows `postgresql://`: `[user[:password]@][host[:port],…][/dbname][?name=value&…]`.
fn parse_uri(rest: &str) -> Result<Values> {
    let mut values = Values::new();
    let (rest, parameters) = rest.split_once('?').map_or((rest, None), |(a, b)| (a, Some(b)));
    let (authority, database) = rest.split_once('/').map_or((rest, None), |(a, b)| (a, Some(b)));
    let (user, hosts) = authority.rsplit_once('@').map_or((None, authority), |(a, b)| (Some(a), b));
    if let Some(user) = user {
        let (user, password) = user.split_once(':').map_or((user, None), |(a, b)| (a, Some(b)));
        if !user.is_empty() {
            values.insert("user", decode(user)?);
        }
        if let Some(password) = password {
            values.insert("password", decode(password)?);
        }
    }
    if !hosts.is_empty() {
        let (mut names, mut ports) = (Vec::new(), Vec::new());
        for host in hosts.split(',') {
            let (name, port) = match host.strip_prefix('[').and_then(|h| h.split_once(']')) {
                Some((address, port)) => (address, port.strip_prefix(':')),
                None => host.split_once(':').map_or((host, None), |(a, b)| (a, Some(b))),
            };
            names.push(decode(name)?);
            ports.push(port.unwrap_or_default().to_owned());
        }
        values.insert("host", names.join(","));
        if ports.iter().any(|p| !p.is_empty()) {
            values.insert("port", ports.join(","));
        }
    }
    if let Some(database) = database.filter(|d| !d.is_empty()) {
        values.insert("dbname", decode(database)?);
    }
    for pair in parameters.into_iter().flat_map(|p| p.split('&')).filter(|p| !p.is_empty()) {
        let (name, value) =
            pair.split_once('=').ok_or_else(|| wrong("a parameter of the URI has no value"))?;
        let (name, value) = (decode(name)?, decode(value)?);
        // JDBC's way to ask for TLS, which libpq takes as well.
        match (name.as_str(), value.as_str()) {
            ("ssl", "true") => set(&mut values, "sslmode", "require".to_owned())?,
            _ => set(&mut values, &name, value)?,
        }
    }
    Ok(values)
}

fn decode(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit =
            || rest.next().and_then(|b| char::from(b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
        match (digit(), digit()) {
            (Some(high), Some(low)) if (high, low) != (0, 0) => bytes.push(high << 4 | low),
            _ => return Err(wrong("a % in the URI is not followed by two hexadecimal digits")),
        }
    }
    String::from_utf8(bytes).map_err(|_| wrong("the URI is not UTF-8"))
}
