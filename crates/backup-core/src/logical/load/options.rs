use super::super::archive::STATISTICS_MAJOR;
use crate::error::{Error, ErrorKind, Result};

/// How a database is restored, and what of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
#[allow(clippy::struct_excessive_bools, reason = "each is a choice of its own")]
pub struct LoadOptions {
    /// Everything belongs to the user who restores.
    pub no_owner: bool,
    /// No privileges are granted or revoked.
    pub no_acl: bool,
    /// No tablespaces are chosen.
    pub no_tablespaces: bool,
    /// `SET ROLE` first.
    pub role: Option<String>,
    /// Neither loads the statistics that the backup has, nor gathers any.
    pub no_analyze: bool,
    /// Definitions, and no rows.
    pub schema_only: bool,
    /// Rows, into tables that are there. All of them or none: they are committed when the last one is in. Values of
    /// sequences follow.
    pub data_only: bool,
    /// With rows alone: neither triggers nor foreign keys act on them. Needs a superuser, or a role that may set
    /// `session_replication_role`. Without it tables are loaded in the order that their foreign keys ask for.
    pub disable_triggers: bool,
    /// Only these tables, and what belongs to them.
    pub tables: Vec<TableName>,
    /// Only these schemas, and what is in them.
    pub schemas: Vec<String>,
    /// Schemas that get another name: old, new.
    pub rename_schemas: Vec<(String, String)>,
    /// Builds the indexes anew afterwards.
    pub reindex: bool,
    /// Goes on after an error of the server. All of them are told at the end, and the restore has failed then.
    pub keep_going: bool,
}

/// A table with its schema.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// The schema.
    pub schema: String,
    /// The table.
    pub name: String,
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

impl std::str::FromStr for TableName {
    type Err = Error;

    /// `schema.table`, as SQL has it: names in double quotes as they are, others in lower case.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::new(ErrorKind::Usage, format!("{text:?} is not the name of a table with its schema"))
                .with_hint("write SCHEMA.TABLE, with double quotes around names with capitals or dots")
        };
        let mut names = Vec::new();
        let mut rest = text;
        loop {
            let (name, after) = identifier(rest).ok_or_else(wrong)?;
            names.push(name);
            if after.is_empty() {
                break;
            }
            rest = after.strip_prefix('.').ok_or_else(wrong)?;
        }
        let [schema, name] = <[String; 2]>::try_from(names).map_err(|_| wrong())?;
        Ok(Self { schema, name })
    }
}

/// Those of some tables, at most five, whose names are like that of a wanted one: the nearest first.
pub(crate) fn near(wanted: &TableName, all: impl Iterator<Item = TableName>) -> Vec<String> {
    let far = |table: &TableName| {
        // One of the same name in another schema is as near as can be.
        distance(&table.name, &wanted.name) + usize::from(table.schema != wanted.schema)
    };
    let mut near: Vec<(usize, String)> = all.map(|table| (far(&table), table.to_string())).collect();
    near.retain(|(far, _)| *far <= 1 + wanted.name.chars().count() / 3);
    near.sort();
    near.dedup();
    near.truncate(5);
    near.into_iter().map(|(_, name)| name).collect()
}

/// How many letters must be changed, added or taken away.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut line: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut before = std::mem::replace(&mut line[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = before + usize::from(x != *y);
            before = line[j + 1];
            line[j + 1] = changed.min(before + 1).min(line[j] + 1);
        }
    }
    line[b.len()]
}

/// An identifier at the head of a text, and what follows it. Nothing where there is none.
pub(super) fn identifier(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$')).unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_lowercase(), &text[end..]));
    };
    let mut name = String::new();
    let mut rest = quoted;
    loop {
        let end = rest.find('"')?;
        name.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return (!name.is_empty()).then_some((name, rest)),
        }
    }
}

impl LoadOptions {
    /// Whether only some objects are restored.
    pub fn is_selection(&self) -> bool {
        !self.tables.is_empty() || !self.schemas.is_empty()
    }

    /// Whether it may go into a database that is not empty: it adds what is not there.
    pub fn adds(&self) -> bool {
        self.is_selection() || self.data_only || !self.rename_schemas.is_empty()
    }

    /// Refuses what contradicts itself.
    pub(super) fn check(&self) -> Result<()> {
        let no = |message: &str, hint: &str| Err(Error::new(ErrorKind::Usage, message).with_hint(hint));
        if self.schema_only && self.data_only {
            return no(
                "schema only and data only exclude each other",
                "leave both out to restore everything",
            );
        }
        if self.disable_triggers && !self.data_only {
            return no(
                "triggers are only there to be disabled with data only",
                "leave it out: rows go in before triggers",
            );
        }
        if self.data_only && !self.rename_schemas.is_empty() {
            return no(
                "with data only no schema is made that could get another name",
                "leave one of them out",
            );
        }
        Ok(())
    }

    /// As arguments of `pg_restore`. Statistics are loaded or gathered when everything is there.
    pub(super) fn arguments(&self, pg_restore_major: u32) -> Vec<String> {
        let mut arguments = Vec::new();
        for (given, option) in [
            (self.no_owner, "--no-owner"),
            (self.no_acl, "--no-acl"),
            (self.no_tablespaces, "--no-tablespaces"),
            (self.schema_only, "--schema-only"),
            (pg_restore_major >= STATISTICS_MAJOR, "--no-statistics"),
        ] {
            if given {
                arguments.push(option.to_owned());
            }
        }
        arguments.extend(self.role.iter().map(|role| format!("--role={role}")));
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_sql_has_them() {
        let parse = |text: &str| text.parse::<TableName>().map(|t| (t.schema, t.name)).ok();
        let name = |schema: &str, name: &str| Some((schema.to_owned(), name.to_owned()));
        assert_eq!(parse("public.People"), name("public", "people"));
        assert_eq!(parse(r#""odd ""name"""."t.1""#), name("odd \"name\"", "t.1"));
        for wrong in ["people", "a.b.c", "", ".", "a.", "\"a.b", "a b.c", "\"\".a"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names_that_are_alike_are_near() {
        for (a, b, far) in [
            ("bookings", "booking", 1),
            ("bookings", "bokings", 1),
            ("a", "", 1),
            ("ab", "ba", 2),
            ("x", "x", 0),
        ] {
            assert_eq!(distance(a, b), far, "{a} {b}");
        }
        let table = |text: &str| text.parse::<TableName>().unwrap();
        let all = ["app.bookings", "public.booking", "app.customers"].map(table);
        assert_eq!(near(&table("app.booking"), all.into_iter()), ["app.bookings", "public.booking"]);
    }
}
