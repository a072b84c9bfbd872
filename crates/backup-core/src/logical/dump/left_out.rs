//! What a dump cannot have, counted from the catalogs.

use super::super::contents::LeftOut;
use crate::error::Result;
use crate::postgres::CopySession;

/// What, why, and the query that counts it.
const QUERIES: [(&str, &str, &str); 3] = [
    (
        "subscriptions",
        "only a superuser sees them",
        "SELECT count(*) FROM pg_catalog.pg_subscription WHERE NOT \
         (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) \
         AND subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())",
    ),
    (
        "options of user mappings",
        "the user may not see them",
        "SELECT count(*) FROM pg_catalog.pg_user_mappings u WHERE umoptions IS NULL AND NOT \
         (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)",
    ),
    (
        "rows of unlogged tables",
        "a standby does not have them",
        "SELECT count(*) FROM pg_catalog.pg_class WHERE relpersistence = 'u' AND relkind = 'r' \
         AND pg_catalog.pg_is_in_recovery()",
    ),
];

/// Counts it.
pub(super) async fn count(session: &mut CopySession) -> Result<Vec<LeftOut>> {
    let mut all = Vec::new();
    for (what, why, sql) in QUERIES {
        let count = session.value(sql).await?.and_then(|count| count.parse().ok()).unwrap_or(0);
        if count > 0 {
            all.push(LeftOut { what: what.to_owned(), count, why: why.to_owned() });
        }
    }
    Ok(all)
}
