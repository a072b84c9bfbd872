use serde_json::Value;

use super::Report;
use crate::postgres::{Tools, major_of};
use crate::repository::Catalog;

const AREA: &str = "restore";

/// Looks whether this host has the programs that restores of the newest backups need.
pub fn check_tools(catalog: &Catalog, tools: &Tools, report: &mut Report) {
    for (kind, program, what) in [
        ("logical", "pg_restore", "restore it"),
        ("physical", "pg_ctl", "start what is restored (restore --start, drill, recover)"),
    ] {
        let Some(newest) = catalog.latest_whole(kind) else { continue };
        let version = newest.source.get("server_version").and_then(Value::as_str);
        let Some(major) = version.and_then(major_of) else { continue };
        match tools.find(program, major) {
            Ok(tool) => report.good(AREA, format!("{program} {} is here for {}", tool.version, newest.id)),
            Err(error) => report.warn(
                AREA,
                format!("this host cannot {what}: {error}"),
                error.hint().unwrap_or("install it before it is needed").to_owned(),
            ),
        }
    }
}
