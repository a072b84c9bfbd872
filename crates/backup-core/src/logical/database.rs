//! What a database is beside its contents, and making one like it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};
use crate::postgres::{Session, quote_identifier, quote_literal};

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
            "SELECT datname, pg_encoding_to_char(encoding), datlocprovider, datcollate, datctype, {locale}, {rules} \
             FROM pg_catalog.pg_database WHERE datname = current_database()"
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
        })
    }

    pub(super) fn from_contents(contents: &Map<String, Value>) -> Result<Self> {
        let value = contents.get("database").cloned().unwrap_or_default();
        serde_json::from_value(value).map_err(|e| {
            Error::new(ErrorKind::Integrity, format!("the contents do not describe the database: {e}"))
        })
    }

    /// Creates an empty database of another name with these properties. `session` is one of another database;
    /// `tablespace` that of the server where it is none.
    pub(super) async fn create(
        &self,
        session: &Session,
        name: &str,
        target_major: u32,
        tablespace: Option<&str>,
    ) -> Result<()> {
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
        if let Some(tablespace) = tablespace {
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
