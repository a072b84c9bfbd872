//! What a database is beside its contents, and making one like it.

use serde::{Deserialize, Serialize};

use crate::dumper::SourceContents;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::{ConnInfo, Session, quote_identifier, quote_literal};

/// Where it stands in the contents of a backup that is one archive, or SQL.
const DATABASE: &str = "database";

/// What `CREATE DATABASE` needs to make a database that sorts and encodes like the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseFacts {
    /// Its name.
    pub name: String,
    /// `UTF8`
    pub encoding: String,
    /// `datlocprovider`: `c` libc, `i` ICU, `b` builtin (17 and later).
    pub locale_provider: String,
    /// `datcollate`
    pub collate: String,
    /// `datctype`
    pub ctype: String,
    /// Locale of ICU or of the builtin provider.
    pub locale: Option<String>,
    /// ICU rules (16 and later).
    pub icu_rules: Option<String>,
    /// Its tablespace, where that is not `pg_default`. Only the restore of a whole server, which has its tablespaces,
    /// puts it there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tablespace: Option<String>,
}

impl DatabaseFacts {
    /// Reads them of the session's database.
    pub async fn read(session: &Session, major: u32) -> Result<Self> {
        let (locale, rules) = match major {
            ..=15 => ("daticulocale", "NULL"),
            16 => ("daticulocale", "daticurules"),
            _ => ("datlocale", "daticurules"),
        };
        let sql = format!(
            "SELECT datname, pg_encoding_to_char(encoding), datlocprovider, datcollate, datctype, {locale}, {rules}, \
             NULLIF(spcname, 'pg_default') FROM pg_catalog.pg_database \
             JOIN pg_catalog.pg_tablespace t ON t.oid = dattablespace WHERE datname = current_database()"
        );
        let row = session.rows(&sql).await?.into_iter().next().unwrap_or_default();
        let [
            Some(name),
            Some(encoding),
            Some(locale_provider),
            Some(collate),
            Some(ctype),
            locale,
            icu_rules,
            tablespace,
        ] = &row[..]
        else {
            return Err(Error::internal("pg_database does not know the database of this session"));
        };
        Ok(Self {
            name: name.clone(),
            encoding: encoding.clone(),
            locale_provider: locale_provider.clone(),
            collate: collate.clone(),
            ctype: ctype.clone(),
            locale: locale.clone(),
            icu_rules: icu_rules.clone(),
            tablespace: tablespace.clone(),
        })
    }

    /// As it is kept with the contents of a backup that is one archive, or SQL.
    pub(super) fn to_contents(&self) -> Result<SourceContents> {
        SourceContents::of(DATABASE, self)
    }

    pub(super) fn from_contents(contents: &SourceContents) -> Result<Self> {
        contents
            .get(DATABASE)?
            .ok_or_else(|| Error::new(ErrorKind::Integrity, "the contents do not describe the database"))
    }

    /// Creates an empty database of another name with these properties. `session` is one of another database.
    pub(super) async fn create(&self, session: &Session, name: &str, target_major: u32) -> Result<()> {
        let literal = quote_literal;
        let mut sql = format!(
            "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}",
            quote_identifier(name),
            literal(&self.encoding),
            literal(&self.collate),
            literal(&self.ctype),
        );
        match (self.locale_provider.as_str(), &self.locale) {
            ("i", Some(locale)) => {
                sql += " LOCALE_PROVIDER icu ICU_LOCALE ";
                sql += &literal(locale);
            }
            ("b", Some(locale)) if target_major >= 17 => {
                sql += " LOCALE_PROVIDER builtin BUILTIN_LOCALE ";
                sql += &literal(locale);
            }
            ("b", _) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("PostgreSQL {target_major} has no builtin locales, which the database uses"),
                )
                .with_hint(
                    "create the database yourself, empty and with another locale, and restore into it",
                ));
            }
            _ => sql += " LOCALE_PROVIDER libc",
        }
        if let Some(rules) = self.icu_rules.as_ref().filter(|_| target_major >= 16) {
            sql += " ICU_RULES ";
            sql += &literal(rules);
        }
        if let Some(tablespace) = &self.tablespace {
            sql += " TABLESPACE ";
            sql += &quote_identifier(tablespace);
        }
        session.rows(&sql).await.map(|_| ()).map_err(|e| {
            let locale = e.to_string().contains("locale");
            let e = e.doing(format!("creating the database {name}"));
            if locale { e.with_hint("generate the locale on the server, or create the database yourself, empty, and restore into it") } else { e }
        })
    }
}

/// A session of a database that is there in any case.
pub(super) async fn maintenance(connection: &ConnInfo) -> Result<Session> {
    match connection.with_database("postgres").connect().await {
        Err(e) if matches!(e.kind(), ErrorKind::NoDatabase | ErrorKind::Auth) => {
            connection.with_database("template1").connect().await.map_err(|_| e)
        }
        other => other,
    }
}
