use jiff::{SignedDuration, Timestamp};

use super::{Objectives, Status};
use crate::check::Report;

impl Status {
    /// What is late, missing or damaged.
    pub(super) fn judge(&self, objectives: &Objectives, report: &mut Report) {
        if self.series.is_empty() {
            report.bad("backup", "there is no good backup", "pgark backup makes one");
        }
        for id in &self.verify.damaged {
            report.bad(
                "verify",
                format!("backup {id} is damaged"),
                "pgark verify shows what; --repair takes it from another copy, else make a new backup",
            );
        }
        self.judge_copies(report);
        self.judge_backups(objectives, report);
        self.judge_wal(objectives, report);
        self.judge_proofs(objectives, report);
    }

    fn judge_copies(&self, report: &mut Report) {
        for copy in self.copies.iter().filter(|copy| copy.backups.is_none()) {
            report.bad("copies", format!("{} does not answer", copy.place), "bring it back; then pgark sync");
        }
        if self.not_everywhere > 0 {
            let found = format!("{} backups are not in every place", self.not_everywhere);
            report.warn("copies", found, "pgark sync");
        }
    }

    fn judge_backups(&self, objectives: &Objectives, report: &mut Report) {
        for series in &self.series {
            let what = match &series.database {
                Some(database) => format!("{} backup of {database}", series.kind),
                None => format!("{} backup", series.kind),
            };
            if let Some(most) = objectives.backup_age.filter(|most| series.age_seconds > most.as_secs()) {
                report.bad(
                    "backup",
                    format!(
                        "the newest {what} is {} old, and {} is promised",
                        length(series.age_seconds),
                        of(most)
                    ),
                    "see why the last ones failed (pgark audit list), and make one",
                );
            }
            if let Some(median) = series.median_bytes.filter(|median| series.stored_bytes < median / 2) {
                report.warn(
                    "size",
                    format!(
                        "the newest {what} has {} MiB, and those before it {}",
                        series.stored_bytes >> 20,
                        median >> 20
                    ),
                    "look whether data is missing (pgark show --contents)",
                );
            }
        }
    }

    fn judge_wal(&self, objectives: &Objectives, report: &mut Report) {
        if let Some(wal) = &self.wal {
            if let Some(gap) = &wal.gap {
                report.bad(
                    "archiving",
                    format!("the WAL has a gap at {gap}: recovery from the newest backup ends there"),
                    "push it again where the server still has it, and make a new backup",
                );
            }
            if wal.conflicts > 0 {
                report.bad(
                    "archiving",
                    format!("{} segments were archived with different contents", wal.conflicts),
                    "two servers archive here: pgark wal list shows them, pgark wal resolve says which counts",
                );
            }
        }
        if let (Some(rpo), Some(most)) = (&self.rpo, objectives.rpo)
            && rpo.seconds > most.as_secs()
        {
            report.bad(
                "rpo",
                format!(
                    "the newest data stored is {} old ({}), and {} is promised",
                    length(rpo.seconds),
                    rpo.by,
                    of(most)
                ),
                "see whether WAL is archived: pgark check; archive_timeout bounds its age on an idle server",
            );
        }
    }

    fn judge_proofs(&self, objectives: &Objectives, report: &mut Report) {
        let late = |last: Option<Timestamp>, most: SignedDuration| {
            last.is_none_or(|last| self.at.duration_since(last) > most)
        };
        if let Some(most) = objectives.verify_age.filter(|most| late(self.verify.last, *most)) {
            report.bad("verify", format!("nothing was verified for {}", of(most)), "pgark verify --all");
        }
        if let Some(drill) = self.drill.as_ref().filter(|drill| !drill.good) {
            report.bad(
                "drill",
                format!("the last drill, of {}, failed", drill.backup),
                "pgark drill shows why",
            );
        }
        let good = self.drill.as_ref().and_then(|drill| drill.last_good);
        if let Some(most) = objectives.drill_age.filter(|most| late(good, *most)) {
            report.bad("drill", format!("no drill was good for {}", of(most)), "pgark drill");
        }
        if let (Some(most), Some(drill)) = (objectives.rto, &self.drill)
            && drill.rto_seconds > most.as_secs_f64()
        {
            report.bad(
                "rto",
                format!(
                    "the last drill took {:.0} s to restore, and {} is promised",
                    drill.rto_seconds,
                    of(most)
                ),
                "more jobs, a faster disk or store, or newer full backups with less WAL behind them",
            );
        }
    }
}

fn of(duration: SignedDuration) -> String {
    length(duration.as_secs())
}

/// A length of time for people: its two largest units.
pub fn length(seconds: i64) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let mut rest = seconds.max(0);
    let mut parts = Vec::new();
    for (size, name) in units {
        let count = rest / size;
        rest %= size;
        if count > 0 {
            parts.push(format!("{count} {name}"));
        } else if !parts.is_empty() {
            break;
        }
        if parts.len() == 2 {
            break;
        }
    }
    if parts.is_empty() { "0 s".to_owned() } else { parts.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::length;

    #[test]
    fn lengths_have_two_units_at_most() {
        let cases = [
            (0, "0 s"),
            (59, "59 s"),
            (61, "1 min 1 s"),
            (3600, "1 h"),
            (93_784, "1 d 2 h"),
            (86_405, "1 d"),
        ];
        for (seconds, text) in cases {
            assert_eq!(length(seconds), text);
        }
    }
}
