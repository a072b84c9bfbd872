//! Putting a restored database in the place of one that is there.

use std::pin::pin;
use std::time::Duration;

use jiff::Timestamp;

use super::target::{Target, maintenance};
use crate::dumper::Ctx;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::postgres::{ConnInfo, Session, quote_identifier, quote_literal};

/// A name is cut by the server to so many bytes (`NAMEDATALEN`, PostgreSQL 15 to 18).
const NAME_BYTES: usize = 63;
/// How long a session may take to end.
const TIME_TO_END: Duration = Duration::from_secs(10);
/// How long a session that seems to end is waited for before it counts as one that stays.
const TIME_TO_GO: Duration = Duration::from_secs(1);
/// `ERRCODE_OBJECT_IN_USE`
const IN_USE: &str = "55006";
/// Settings that are lists of names (`variable_is_guc_list_quote` in dumputils.c, PostgreSQL 15 to 18).
const LISTS: &[&str] = &[
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// Letters and digits that make a name unique.
const RANDOM: usize = 8;

/// `NAME_pgark_new_7qd2k4…`
pub(super) fn new_name(name: &str) -> String {
    random_name(name, "new")
}

/// `NAME_pgark_scratch_7qd2k4…`
pub(super) fn scratch_name(name: &str) -> String {
    random_name(name, "scratch")
}

fn random_name(name: &str, what: &str) -> String {
    let id = ulid::Ulid::generate().to_string().to_lowercase();
    with_end(name, &format!("_pgark_{what}_{}", &id[id.len() - RANDOM..]))
}

/// Databases that a restore of a database `name` made to rename or to drop, and that nobody uses: it was killed.
pub(super) async fn left_behind(session: &Session, name: &str) -> Result<Vec<String>> {
    let sql = "SELECT datname FROM pg_catalog.pg_database d WHERE NOT EXISTS \
               (SELECT 1 FROM pg_catalog.pg_stat_activity a WHERE a.datid = d.oid) ORDER BY datname";
    let names = session.rows(sql).await?.into_iter().filter_map(|row| row.into_iter().next()?);
    let told = |left: String| {
        let drop = format!("DROP DATABASE {}", quote_identifier(&left));
        format!("{left} was left by a restore that was killed; no other restore at work? then: {drop}")
    };
    Ok(names.filter(|candidate| is_random_name(candidate, name)).map(told).collect())
}

/// Whether a name is of [`new_name`] or [`scratch_name`].
fn is_random_name(candidate: &str, name: &str) -> bool {
    ["_pgark_new_", "_pgark_scratch_"]
        .iter()
        .any(|what| end_of(candidate, name, what).is_some_and(|end| end.len() == RANDOM))
}

/// What stands behind `what` in a name that [`with_end`] made of `name`.
fn end_of<'a>(candidate: &'a str, name: &str, what: &str) -> Option<&'a str> {
    let end = &candidate[candidate.rfind(what)?..];
    (with_end(name, end) == candidate).then(|| &end[what.len()..])
}

const OLD: &str = "_pgark_old_";

/// `NAME_pgark_old_20261121t181500_123z`
fn old_name(name: &str) -> String {
    with_end(name, &format!("{OLD}{}", Timestamp::now().strftime("%Y%m%dt%H%M%S_%3fz")))
}

/// Whether a name is what a swap gave to the database `name`.
pub(super) fn is_old_name(candidate: &str, name: &str) -> bool {
    const TIME: &[u8] = b"00000000t000000_000z";
    let is_time = |time: &str| {
        time.len() == TIME.len()
            && time
                .bytes()
                .zip(TIME)
                .all(|(c, like)| if *like == b'0' { c.is_ascii_digit() } else { c == *like })
    };
    end_of(candidate, name, OLD).is_some_and(is_time)
}

fn with_end(name: &str, end: &str) -> String {
    let mut cut = name.len().min(NAME_BYTES.saturating_sub(end.len()));
    while !name.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("{}{end}", &name[..cut])
}

/// What a swap came to.
pub(super) struct Swapped {
    /// The database that was there, by its new name; nothing where it was dropped.
    pub(super) kept: Option<String>,
}

/// What is in the way of renaming a database, a line each.
pub(super) async fn obstacles(session: &Session, name: &str, end_sessions: bool) -> Result<Vec<String>> {
    let literal = quote_literal(name);
    let mut found = Vec::new();
    let sql = format!(
        "SELECT string_agg(slot_name, ', ') FROM pg_catalog.pg_replication_slots WHERE database = {literal}"
    );
    if let Some(slots) = session.value(&sql).await? {
        found.push(format!(
            "logical replication slots of {name} would stay with the old database: {slots} (drop them, and make them again after the restore)"
        ));
    }
    let sql = format!(
        "SELECT string_agg(subname, ', ') FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid \
         WHERE d.datname = {literal}"
    );
    if let Some(subscriptions) = session.value(&sql).await? {
        found.push(format!(
            "subscriptions of {name} would stay with the old database: {subscriptions} (drop them, and make them again after the restore)"
        ));
    }
    let sql =
        format!("SELECT string_agg(gid, ', ') FROM pg_catalog.pg_prepared_xacts WHERE database = {literal}");
    if let Some(prepared) = session.value(&sql).await? {
        found.push(format!("{name} has prepared transactions: {prepared} (commit or roll them back)"));
    }
    let begun = std::time::Instant::now();
    let mut connected = connected(session, name).await?;
    // Some are just about to end, of this process for example.
    while !end_sessions && !connected.is_empty() && begun.elapsed() < TIME_TO_GO {
        tokio::time::sleep(Duration::from_millis(50)).await;
        connected = self::connected(session, name).await?;
    }
    if !end_sessions && !connected.is_empty() {
        found.push(format!(
            "{name} is in use by {} (disconnect them, or end them with --end-sessions)",
            connected.iter().map(|(_, who)| who.as_str()).collect::<Vec<_>>().join(", ")
        ));
    }
    Ok(found)
}

/// Sessions of a database: process, and who it is.
async fn connected(session: &Session, name: &str) -> Result<Vec<(String, String)>> {
    let sql = format!(
        "SELECT pid, coalesce(usename, '-') || coalesce(nullif(' (' || application_name || ')', ' ()'), '') || ' pid ' || pid \
         FROM pg_catalog.pg_stat_activity WHERE datname = {} AND backend_type = 'client backend' ORDER BY pid",
        quote_literal(name)
    );
    let rows = session.rows(&sql).await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| match <[Option<String>; 2]>::try_from(row) {
            Ok([Some(pid), Some(who)]) => Some((pid, who)),
            _ => None,
        })
        .collect())
}

/// Gives the new database what belongs to the old one and not to its contents: owner, privileges, settings, limit of
/// connections, comment.
pub(super) async fn copy_settings(session: &Session, old: &str, new: &str) -> Result<()> {
    let mut sql = Vec::new();
    let target = quote_identifier(new);
    let literal = quote_literal(old);
    let facts = format!(
        "SELECT pg_catalog.pg_get_userbyid(datdba), datconnlimit, datistemplate, datacl IS NULL, \
         pg_catalog.shobj_description(oid, 'pg_database') FROM pg_catalog.pg_database WHERE datname = {literal}"
    );
    let row = session.rows(&facts).await?.into_iter().next().unwrap_or_default();
    let [Some(owner), Some(limit), Some(template), Some(default_acl), comment] = &row[..] else {
        return Err(Error::new(ErrorKind::NoDatabase, format!("the database {old} is gone")));
    };
    sql.push(format!("ALTER DATABASE {target} OWNER TO {}", quote_identifier(owner)));
    if let Some(comment) = comment {
        sql.push(format!("COMMENT ON DATABASE {target} IS {}", quote_literal(comment)));
    }
    if default_acl == "f" {
        sql.push(format!("REVOKE ALL ON DATABASE {target} FROM PUBLIC, {}", quote_identifier(owner)));
        let grants = format!(
            "SELECT 'GRANT ' || a.privilege_type || ' ON DATABASE ' || {} || ' TO ' || CASE a.grantee WHEN 0 THEN 'PUBLIC' \
             ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END || CASE WHEN a.is_grantable \
             THEN ' WITH GRANT OPTION' ELSE '' END FROM pg_catalog.pg_database d, pg_catalog.aclexplode(d.datacl) a \
             WHERE d.datname = {literal}",
            quote_literal(&target)
        );
        sql.extend(session.rows(&grants).await?.into_iter().filter_map(|row| row.into_iter().next()?));
    }
    let settings = format!(
        "SELECT CASE setrole WHEN 0 THEN NULL ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(setrole)) END, unnest(setconfig) \
         FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase WHERE d.datname = {literal}"
    );
    for row in session.rows(&settings).await? {
        let Ok([role, Some(setting)]) = <[Option<String>; 2]>::try_from(row) else { continue };
        let Some((name, value)) = setting.split_once('=') else { continue };
        let whose = match role {
            None => format!("DATABASE {target}"),
            Some(role) => format!("ROLE {role} IN DATABASE {target}"),
        };
        sql.push(format!("ALTER {whose} SET {} TO {}", setting_name(name), setting_value(name, value)));
    }
    // Last: a template can be used by everybody, and a limit may keep its owner out.
    sql.push(format!(
        "ALTER DATABASE {target} WITH CONNECTION LIMIT {limit} IS_TEMPLATE {}",
        template == "t"
    ));
    for statement in sql {
        session
            .rows(&statement)
            .await
            .map_err(|e| e.doing(format!("copying the settings of {old} ({statement})")))?;
    }
    Ok(())
}

/// A name of a setting, `my.setting` as well.
fn setting_name(name: &str) -> String {
    name.split('.').map(quote_identifier).collect::<Vec<_>>().join(".")
}

/// Lists stand as SQL has them, and would become one element as a literal.
fn setting_value(name: &str, value: &str) -> String {
    if !LISTS.contains(&name.to_lowercase().as_str()) {
        return quote_literal(value);
    }
    let (mut elements, mut element, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = value.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                element.push('"');
                chars.next();
            }
            '"' => quoted = !quoted,
            ',' if !quoted => elements.push(std::mem::take(&mut element)),
            c if c.is_whitespace() && !quoted => {}
            c => element.push(c),
        }
    }
    elements.push(element);
    elements.iter().map(|element| quote_literal(element)).collect::<Vec<_>>().join(", ")
}

/// Renames both in one transaction. The old database is as it was when this fails.
pub(super) async fn swap(
    target: &Target,
    connection: &ConnInfo,
    end_sessions: bool,
    drop_old: bool,
    ctx: &Ctx,
) -> Result<Swapped> {
    let (name, old) = (connection.database(), old_name(connection.database()));
    let session = &target.maintenance;
    let found = obstacles(session, name, true).await?;
    if !found.is_empty() {
        return Err(
            Error::new(ErrorKind::Conflict, found.join("; ")).doing("taking the old database's place")
        );
    }
    copy_settings(session, name, &target.name).await?;
    if ctx.cancel.is_cancelled() {
        return Err(Error::cancelled());
    }
    let alter = |from: &str, to: &str| {
        format!("ALTER DATABASE {} RENAME TO {}", quote_identifier(from), quote_identifier(to))
    };
    let sql = format!("BEGIN; {}; {}; COMMIT", alter(name, &old), alter(&target.name, name));
    rename(session, connection, &sql, end_sessions).await?;
    if !drop_old {
        return Ok(Swapped { kept: Some(old) });
    }
    let drop = format!("DROP DATABASE {} WITH (FORCE)", quote_identifier(&old));
    match session.rows(&drop).await {
        Ok(_) => Ok(Swapped { kept: None }),
        Err(error) => {
            let message = format!("the old database is still there as {old}: {error}");
            ctx.observer.event(&Event::Warning { message });
            Ok(Swapped { kept: Some(old) })
        }
    }
}

/// Renames, once nobody is connected. PostgreSQL locks a database while it waits for that, five seconds at most, and who
/// wants to connect waits as well (`RenameDatabase` in dbcommands.c, `CountOtherDBBackends` in procarray.c, PostgreSQL 15
/// to 18): so nothing has to be undone, whenever this process dies.
async fn rename(session: &Session, connection: &ConnInfo, sql: &str, end_sessions: bool) -> Result<()> {
    let name = connection.database();
    let beside = if end_sessions { Some(maintenance(connection).await?) } else { None };
    let begun = std::time::Instant::now();
    loop {
        let mut renaming = pin!(session.rows(sql));
        let mut ended = Ok(());
        // It is waited for in any case: the server goes on with it.
        let renamed = loop {
            if let Some(beside) = &beside
                && ended.is_ok()
            {
                ended = end_all(beside, name).await;
            }
            if let Ok(renamed) = tokio::time::timeout(Duration::from_millis(100), &mut renaming).await {
                break renamed;
            }
        };
        let Err(error) = renamed else { return Ok(()) };
        // Who was connected may be gone now, and nothing was changed either way.
        let _ = session.rows("ROLLBACK").await;
        ended?;
        if error.sqlstate() != Some(IN_USE) {
            return Err(error.doing("renaming the databases"));
        }
        if begun.elapsed() > TIME_TO_END {
            let who = connected(session, name).await?;
            let who = who.into_iter().map(|(_, who)| who).collect::<Vec<_>>().join(", ");
            return Err(Error::new(ErrorKind::Conflict, format!("{name} is in use by {who}"))
                .with_hint("disconnect them, or end them with --end-sessions")
                .caused_by(error));
        }
    }
}

/// Ends the sessions of a database.
async fn end_all(session: &Session, name: &str) -> Result<()> {
    let sql = format!(
        "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity \
         WHERE datname = {} AND backend_type = 'client backend'",
        quote_literal(name)
    );
    session.rows(&sql).await.map(drop).map_err(|e| e.doing(format!("ending the sessions of {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_never_cut_by_the_server() {
        let long = "ä".repeat(31);
        for name in [new_name(&long), old_name(&long)] {
            assert!(name.len() <= NAME_BYTES && name.starts_with("ää") && name.contains("_pgark_"), "{name}");
        }
        assert_ne!(new_name("shop"), new_name("shop"));
        for name in [&long, "shop", "a_pgark_old_b"] {
            let old = old_name(name);
            assert!(
                is_old_name(&old, name) && !is_old_name(&old, "sho") && !is_old_name(name, name),
                "{old}"
            );
        }
        assert!(is_random_name(&new_name(&long), &long) && is_random_name(&scratch_name("shop"), "shop"));
        for other in ["shop_pgark_new_1", "shop", "shops_pgark_new_12345678", "shop_pgark_old_12345678"] {
            assert!(!is_random_name(other, "shop"), "{other}");
        }
        for other in ["shop_pgark_old_20261121", "shop_pgark_old_20261121t181500_123z2", "shop"] {
            assert!(!is_old_name(other, "shop"), "{other}");
        }
    }

    #[test]
    fn lists_stay_lists() {
        assert_eq!(
            setting_value("search_path", r#""$user", public, "a ""b"", c""#),
            r#"'$user', 'public', 'a "b", c'"#
        );
        assert_eq!(setting_value("search_path", r#""""#), "''");
        assert_eq!(setting_value("application_name", "a, b"), "'a, b'");
    }
}
