//! The audit log as frontends read it.

use backup_core::Result;
use backup_core::audit::{self, AuditReport, Entry, Head};
use backup_core::repository::ClusterName;
use serde::Serialize;

use super::Settings;

/// The file of the host's state that has the last entry that a verification saw.
const SEEN: &str = "audit-head";

/// The answer to `audit list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AuditListing {
    /// The cluster.
    pub cluster: ClusterName,
    /// The entries, oldest first.
    pub entries: Vec<Entry>,
}

/// The answer to `audit verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AuditVerified {
    /// Whether nothing was changed or removed.
    pub good: bool,
    /// Number of the last entry that this host saw at an earlier verification, with which the log was compared.
    pub seen: Option<u64>,
    /// What was found.
    #[serde(flatten)]
    pub report: AuditReport,
}

impl Settings {
    /// The audit log of a cluster, or the last entries of it.
    pub async fn list_audit(&self, cluster: &ClusterName, last: Option<u64>) -> Result<AuditListing> {
        let repository = self.open_repository().await?;
        let from = match last {
            None => 1,
            Some(count) => {
                let head = audit::head(&repository, cluster).await?;
                head.map_or(1, |head| (head.number + 1).saturating_sub(count))
            }
        };
        let entries = audit::entries(&repository, cluster, from).await?;
        Ok(AuditListing { cluster: cluster.clone(), entries })
    }

    /// Reads the whole audit log. This host remembers its end, so that a log that was cut off since is found.
    /// `seen` is an end that was kept elsewhere.
    pub async fn verify_audit(&self, cluster: &ClusterName, seen: Option<Head>) -> Result<AuditVerified> {
        let repository = self.open_repository().await?;
        let state = self.host_state(&repository, cluster)?;
        // What cannot be read any more was lost, as all of the state may be.
        let kept = || state.read(SEEN).ok()?.and_then(|text| String::from_utf8(text).ok()?.parse().ok());
        let seen = seen.or_else(kept);
        let report = audit::verify(&repository, cluster, seen).await?;
        let good = report.findings.is_empty();
        if let (true, Some(head)) = (good, report.head) {
            state.write(SEEN, head.to_string().as_bytes())?;
        }
        Ok(AuditVerified { good, seen: seen.map(|head| head.number), report })
    }
}
