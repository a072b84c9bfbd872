//! What would make a restore fail, found before anything is changed.

use std::collections::BTreeSet;

use super::super::archive::Toc;
use super::super::contents::DatabaseContents;
use super::choice::Choice;
use super::options::{LoadOptions, identifier};
use super::target::Ground;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::{Session, major_of, quote_literal};

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Each would make the restore fail.
    pub(super) problems: Vec<String>,
    /// Each is a risk.
    pub(super) warnings: Vec<String>,
}

impl Findings {
    /// One error that lists everything.
    pub(super) fn into_warnings(self) -> Result<Vec<String>> {
        if self.problems.is_empty() {
            return Ok(self.warnings);
        }
        let hint = "nothing was changed; put these right, or leave out what needs them";
        Err(Error::new(ErrorKind::Unsupported, self.problems.join("; "))
            .doing("this restore would fail")
            .with_hint(hint))
    }
}

/// Looks at everything that a restore of these entries asks of the server.
pub(super) async fn check(
    ground: &Ground,
    toc: &Toc,
    choice: &Choice,
    database: &DatabaseContents,
    options: &LoadOptions,
    creates: bool,
) -> Result<Findings> {
    let mut findings = Findings::default();
    let session = &ground.maintenance;
    version(&mut findings, ground, database);
    privileges(&mut findings, session, options, creates).await?;
    if !options.data_only {
        roles(&mut findings, session, toc, choice, options).await?;
        extensions(&mut findings, session, toc, choice, database).await?;
        tablespaces(&mut findings, session, toc, choice, options).await?;
    }
    if creates {
        provider(&mut findings, ground, database).await?;
    }
    Ok(findings)
}

fn version(findings: &mut Findings, ground: &Ground, database: &DatabaseContents) {
    if ground.major < major_of(&database.server_version).unwrap_or(0) {
        findings.warnings.push(format!(
            "the server is PostgreSQL {}, and the backup is of {}: what the older one does not know fails",
            ground.version, database.server_version
        ));
    }
}

async fn privileges(
    findings: &mut Findings,
    session: &Session,
    options: &LoadOptions,
    creates: bool,
) -> Result<()> {
    let sql = "SELECT rolsuper, rolcreatedb, rolname FROM pg_catalog.pg_roles WHERE rolname = current_user";
    let row = session.rows(sql).await?.into_iter().next().unwrap_or_default();
    let [superuser, createdb, user] = &row[..] else { return Ok(()) };
    let yes = |value: &Option<String>| value.as_deref() == Some("t");
    let user = user.as_deref().unwrap_or_default();
    if creates && !yes(superuser) && !yes(createdb) {
        findings.problems.push(format!("user {user} may not create databases (ALTER ROLE … CREATEDB)"));
    }
    if options.disable_triggers && !yes(superuser) {
        let sql = "SELECT pg_catalog.has_parameter_privilege('session_replication_role', 'SET')";
        if session.value(sql).await?.as_deref() != Some("t") {
            findings.problems.push(format!(
                "user {user} may not disable triggers (GRANT SET ON PARAMETER session_replication_role)"
            ));
        }
    }
    Ok(())
}

async fn roles(
    findings: &mut Findings,
    session: &Session,
    toc: &Toc,
    choice: &Choice,
    options: &LoadOptions,
) -> Result<()> {
    let (mut owners, mut grantees) = (BTreeSet::new(), BTreeSet::new());
    for entry in toc.entries.iter().filter(|entry| choice.has(entry.id)) {
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let is_acl = matches!(entry.kind.as_str(), "ACL" | "DEFAULT ACL");
        if is_acl && !options.no_acl {
            grantees.extend(named_in(&text(entry.definition.as_deref())));
        }
        if !is_acl && !options.no_owner {
            owners.insert(text(entry.owner.as_deref()));
        }
    }
    owners.remove("");
    let known: BTreeSet<String> = column(session, "SELECT rolname FROM pg_catalog.pg_roles").await?;
    let absent = |names: BTreeSet<String>| names.difference(&known).cloned().collect::<Vec<_>>().join(", ");
    let (owners, grantees) = (absent(owners), absent(grantees));
    if !owners.is_empty() {
        findings
            .problems
            .push(format!("roles that own objects are missing: {owners} (create them, or --no-owner)"));
    }
    if !grantees.is_empty() {
        findings
            .problems
            .push(format!("roles with privileges are missing: {grantees} (create them, or --no-acl)"));
    }
    if let Some(role) = options.role.as_ref().filter(|role| !known.contains(*role)) {
        findings.problems.push(format!("the role {role} is missing (--role)"));
    }
    Ok(())
}

/// Every role that a restore of all entries needs: owners, and those that privileges and policies name.
pub(in crate::logical) fn roles_of(toc: &Toc) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in &toc.entries {
        let text = String::from_utf8_lossy(entry.definition.as_deref().unwrap_or_default());
        match entry.kind.as_str() {
            "ACL" | "DEFAULT ACL" => names.extend(named_in(&text)),
            "POLICY" => names.extend(named_in_policy(&text)),
            _ => {}
        }
        names.insert(String::from_utf8_lossy(entry.owner.as_deref().unwrap_or_default()).into_owned());
    }
    names.remove("");
    names
}

/// The roles of `CREATE POLICY … TO a, b USING …` (`dumpPolicy` in `pg_dump.c`, PostgreSQL 15 to 18). `PUBLIC` is not
/// written.
fn named_in_policy(policy: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut rest = policy.find(" TO ").map_or("", |at| &policy[at + 4..]);
    while let Some((name, after)) = identifier(rest) {
        names.insert(name);
        let Some(more) = after.strip_prefix(", ") else { break };
        rest = more;
    }
    names
}

/// The roles that GRANT, REVOKE and ALTER DEFAULT PRIVILEGES name (`buildACLCommands` in `dumputils.c`, PostgreSQL 15 to
/// 18), a statement a line.
fn named_in(acl: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in acl.lines() {
        for first in ["ALTER DEFAULT PRIVILEGES FOR ROLE ", "SET SESSION AUTHORIZATION "] {
            let rest = line.strip_prefix(first).filter(|rest| !rest.starts_with("DEFAULT"));
            names.extend(rest.and_then(identifier).map(|(name, _)| name));
        }
        let grants = line.starts_with("GRANT ") || (line.starts_with("ALTER ") && line.contains(" GRANT "));
        // The last one: a name of an object may look like it.
        let last = line.rsplit_once(if grants { " TO " } else { " FROM " });
        let role = last.map(|(_, role)| role).filter(|role| !role.starts_with("PUBLIC"));
        names.extend(role.and_then(identifier).map(|(name, _)| name));
    }
    names
}

async fn extensions(
    findings: &mut Findings,
    session: &Session,
    toc: &Toc,
    choice: &Choice,
    database: &DatabaseContents,
) -> Result<()> {
    let wanted = toc.entries.iter().filter(|e| e.kind == "EXTENSION" && choice.has(e.id));
    let wanted: BTreeSet<String> = wanted.map(super::super::archive::Entry::name_text).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let rows = session.rows("SELECT name, default_version FROM pg_catalog.pg_available_extensions").await?;
    let available: std::collections::BTreeMap<String, String> = rows
        .into_iter()
        .filter_map(|row| match <[Option<String>; 2]>::try_from(row) {
            Ok([Some(name), version]) => Some((name, version.unwrap_or_default())),
            _ => None,
        })
        .collect();
    for name in wanted {
        let Some(has) = available.get(&name) else {
            findings
                .problems
                .push(format!("the server does not have the extension {name} (install it there)"));
            continue;
        };
        let was = database.extensions.iter().find(|e| e.name == name).map(|e| e.version.as_str());
        if let Some(was) = was.filter(|was| numbers(has) < numbers(was)) {
            findings
                .warnings
                .push(format!("the server has extension {name} {has}, and the backup is of {was}"));
        }
    }
    Ok(())
}

/// `1.10.2` as numbers; what is no number counts as zero.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().unwrap_or(0)).collect()
}

async fn tablespaces(
    findings: &mut Findings,
    session: &Session,
    toc: &Toc,
    choice: &Choice,
    options: &LoadOptions,
) -> Result<()> {
    if options.no_tablespaces {
        return Ok(());
    }
    let entries = toc.entries.iter().filter(|e| choice.has(e.id));
    let names = entries.filter_map(|e| Some(String::from_utf8_lossy(e.tablespace.as_deref()?).into_owned()));
    let mut names: BTreeSet<String> = names.collect();
    names.remove("");
    let known = column(session, "SELECT spcname FROM pg_catalog.pg_tablespace").await?;
    let missing: Vec<String> = names.difference(&known).cloned().collect();
    if !missing.is_empty() {
        findings.problems.push(format!(
            "tablespaces are missing: {} (create them, or --no-tablespaces)",
            missing.join(", ")
        ));
    }
    Ok(())
}

async fn provider(findings: &mut Findings, ground: &Ground, database: &DatabaseContents) -> Result<()> {
    let facts = &database.facts;
    match facts.locale_provider.as_str() {
        "b" if ground.major < 17 => findings.problems.push(format!(
            "PostgreSQL {} has no builtin locales, which the database uses (create it yourself, empty, and restore into it)",
            ground.major
        )),
        "i" => {
            let sql = "SELECT 1 FROM pg_catalog.pg_collation WHERE collprovider = 'i' LIMIT 1";
            if ground.maintenance.value(sql).await?.is_none() {
                let advice = "create it yourself, empty, with a libc locale, and restore into it";
                findings.problems.push(format!("the server is built without ICU, which the database uses ({advice})"));
            }
        }
        _ => {}
    }
    let sql = format!("SELECT pg_catalog.pg_char_to_encoding({})", quote_literal(&facts.encoding));
    if ground.maintenance.value(&sql).await?.as_deref() == Some("-1") {
        findings.problems.push(format!("the server does not know the encoding {}", facts.encoding));
    }
    Ok(())
}

async fn column(session: &Session, sql: &str) -> Result<BTreeSet<String>> {
    Ok(session.rows(sql).await?.into_iter().filter_map(|row| row.into_iter().next()?).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acls_name_roles() {
        let acl = "REVOKE ALL ON TABLE public.\"a TO b\" FROM PUBLIC;\n\
                   GRANT SELECT ON TABLE public.t TO anna;\nGRANT ALL ON TABLE public.t TO \"Odd \"\"role\" WITH GRANT OPTION;\n\
                   SET SESSION AUTHORIZATION carl;\nRESET SESSION AUTHORIZATION;\n\
                   ALTER DEFAULT PRIVILEGES FOR ROLE dora IN SCHEMA s GRANT SELECT ON TABLES TO emil;";
        let names: Vec<String> = named_in(acl).into_iter().collect();
        assert_eq!(names, ["Odd \"role", "anna", "carl", "dora", "emil"]);
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(
            numbers("1.9") < numbers("1.10")
                && numbers("3.4.2") < numbers("3.5")
                && numbers("2") == numbers("2")
        );
    }
}
