//! What is in a logical backup, without reading its rows.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::KIND;
use crate::dumper::{Ctx, PartSource, Restorer};
use crate::error::Result;

/// Reads the contents of a logical backup and no part: [`LogicalContents`](super::LogicalContents) makes sense of what
/// [`Restored::target`](crate::Restored::target) has then. A backup that is one archive, or SQL, has `database` in it,
/// the facts of its database, and in place of tables `parts` with their kind, name and bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Describe;

#[async_trait]
impl Restorer for Describe {
    fn accepts(&self, kind: &str) -> bool {
        kind == KIND
    }

    async fn restore(&self, parts: Arc<dyn PartSource>, _: &Ctx) -> Result<Map<String, Value>> {
        let mut told = parts.contents().to_map()?;
        if super::LogicalContents::described(&told)?.is_none() {
            let each = |part: crate::PartInfo| serde_json::json!({"kind": part.spec.kind, "name": part.spec.name, "bytes": part.raw_bytes});
            told.insert("parts".to_owned(), parts.parts().into_iter().map(each).collect());
        }
        Ok(told)
    }
}
