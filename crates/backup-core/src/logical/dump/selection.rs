use serde::{Deserialize, Serialize};

use super::super::archive::STATISTICS_MAJOR;
use crate::error::{Error, ErrorKind, Result};

/// What of a database is dumped. Patterns are those of `pg_dump`: `*` and `?`, `schema.table`, quotes for names with
/// capitals.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
#[allow(clippy::struct_excessive_bools, reason = "they are switches of pg_dump")]
pub struct Selection {
    /// Only these schemas.
    pub schemas: Vec<String>,
    /// Not these schemas.
    pub exclude_schemas: Vec<String>,
    /// Only these tables.
    pub tables: Vec<String>,
    /// Not these tables.
    pub exclude_tables: Vec<String>,
    /// Not the rows of these tables.
    pub exclude_table_data: Vec<String>,
    /// No rows.
    pub schema_only: bool,
    /// Rows only.
    pub data_only: bool,
    /// `pre-data`, `data`, `post-data`; all where none is named.
    pub sections: Vec<String>,
    /// Rows of partitions go in through the root of the partitions.
    pub load_via_partition_root: bool,
    /// No large objects.
    pub no_large_objects: bool,
}

impl Selection {
    /// Whether all of the database is dumped.
    pub fn is_everything(&self) -> bool {
        Self { load_via_partition_root: self.load_via_partition_root, ..Self::default() } == *self
    }

    /// As arguments of `pg_dump` (`pg_dump.c`, PostgreSQL 15 to 18).
    ///
    /// # Errors
    /// [`Usage`](ErrorKind::Usage) where it contradicts itself.
    pub(super) fn arguments(&self, pg_dump_major: u32) -> Result<Vec<String>> {
        if self.schema_only && self.data_only {
            return Err(Error::new(ErrorKind::Usage, "schema only and data only exclude each other")
                .with_hint("leave both out for a whole backup"));
        }
        let mut arguments = Vec::new();
        for (option, patterns) in [
            ("schema", &self.schemas),
            ("exclude-schema", &self.exclude_schemas),
            ("table", &self.tables),
            ("exclude-table", &self.exclude_tables),
            ("exclude-table-data", &self.exclude_table_data),
            ("section", &self.sections),
        ] {
            arguments.extend(patterns.iter().map(|pattern| format!("--{option}={pattern}")));
        }
        let no_large_objects = if pg_dump_major >= 16 { "--no-large-objects" } else { "--no-blobs" };
        for (given, option) in [
            (self.schema_only, "--schema-only"),
            (self.data_only, "--data-only"),
            (self.load_via_partition_root, "--load-via-partition-root"),
            (self.no_large_objects, no_large_objects),
            // A pattern that matches nothing is a mistake, not an empty backup.
            (!self.schemas.is_empty() || !self.tables.is_empty(), "--strict-names"),
        ] {
            if given {
                arguments.push(option.to_owned());
            }
        }
        Ok(arguments)
    }

    /// The same with what the planner knows of the tables, which `pg_dump` writes from 18 on. It holds values of rows:
    /// where rows are left out, these are as well.
    ///
    /// # Errors
    /// As [`arguments`](Self::arguments).
    pub(super) fn with_statistics(&self, pg_dump_major: u32) -> Result<Vec<String>> {
        let mut arguments = self.arguments(pg_dump_major)?;
        let all_rows = !self.schema_only && !self.data_only && self.exclude_table_data.is_empty();
        if pg_dump_major >= STATISTICS_MAJOR && all_rows && self.sections.is_empty() {
            arguments.push("--statistics".to_owned());
        }
        Ok(arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_become_arguments() {
        let selection = Selection {
            tables: vec!["public.*".to_owned()],
            exclude_table_data: vec!["log_*".to_owned()],
            no_large_objects: true,
            ..Selection::default()
        };
        assert!(!selection.is_everything() && Selection::default().is_everything());
        let expected = ["--table=public.*", "--exclude-table-data=log_*", "--no-blobs", "--strict-names"];
        assert_eq!(selection.arguments(15).unwrap(), expected);
        // Values of rows that are left out are not in the statistics either.
        assert!(!selection.with_statistics(18).unwrap().contains(&"--statistics".to_owned()));
        assert_eq!(Selection::default().with_statistics(18).unwrap(), ["--statistics"]);
        assert!(Selection::default().with_statistics(17).unwrap().is_empty());
        assert!(
            Selection { schema_only: true, data_only: true, ..Selection::default() }.arguments(18).is_err()
        );
    }
}
