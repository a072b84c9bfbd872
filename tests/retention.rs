//! Retention: rules against their definitions, and prunes of whole repositories.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "retention/prune.rs"]
mod prune;
#[path = "retention/rules.rs"]
mod rules;
#[path = "support/mod.rs"]
mod support;
