//! Looks for what would make the next backup, the archiving of WAL, or a restore fail, before it does.

mod report;
mod repository;
mod server;
mod tools;

pub use report::{Checked, Level, Report};
pub use repository::check_repository;
pub use server::{Wanted, check_server};
pub use tools::check_tools;
