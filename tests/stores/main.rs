//! The stores, with real servers: the contract, what goes wrong, and whole backups in them.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod conformance;
mod create;
mod end_to_end;
mod faults;
mod fixtures;
mod local;
mod s3_errors;
#[path = "../support/mod.rs"]
mod support;
mod uploads;
mod urls;
