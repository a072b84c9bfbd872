//! The users of this host, as `/etc/passwd` names them.

use crate::error::{Error, Result};

/// A line of `/etc/passwd`: passwd(5).
struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let mut number = || fields.next()?.parse().ok();
        number();
        Some(User { name, uid: number()?, gid: number()? })
    })
}

fn read() -> Result<String> {
    std::fs::read_to_string("/etc/passwd").map_err(|e| Error::io("reading /etc/passwd", e))
}

/// User and group id of a user; nothing where there is none of this name.
pub(crate) fn ids_of(name: &str) -> Result<Option<(u32, u32)>> {
    Ok(users(&read()?).find(|user| user.name == name).map(|user| (user.uid, user.gid)))
}

/// The name of whoever runs this process, or the user id where it has none.
pub(crate) fn own_name() -> String {
    let uid = rustix::process::getuid().as_raw();
    let passwd = read().unwrap_or_default();
    let name = users(&passwd).find(|user| user.uid == uid).map(|user| user.name.to_owned());
    name.unwrap_or_else(|| uid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_passwd_are_read_and_others_left_out() {
        let text = "root:x:0:0:root:/root:/bin/bash\n# none\n+::::::\npostgres:x:101:103::/var/lib:/bin/sh\n";
        let found: Vec<_> = users(text).map(|user| (user.name, user.uid, user.gid)).collect();
        assert_eq!(found, [("root", 0, 0), ("postgres", 101, 103)]);
    }
}
