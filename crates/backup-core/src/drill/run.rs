//! The steps of a drill, one after another.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use jiff::Timestamp;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use super::DrillOptions;
use super::look::{self, Check, Looked};
use super::place::Place;
use super::record::{DrillRecord, Failure, Outcome, Phase, Step};
use super::workplace::{self, Workplace};
use crate::audit::{self, Act};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer, Silent};
use crate::physical::{Recovery, Target, TargetAction};
use crate::postgres::work_folder::default_parent;
use crate::postgres::{ConnInfo, Environment, ServerPrograms, major_of};
use crate::repository::{BackupId, BackupRecord, FORMAT, Repository, Tool, Verb, host_name};
use crate::restore::{Restore, RestoreBuilder};
use crate::{logical, physical};

/// A drill at work.
pub(super) struct Run<'a> {
    repository: &'a Repository,
    pub(super) record: &'a BackupRecord,
    pub(super) options: DrillOptions,
    pub(super) jobs: usize,
    major: u32,
    pub(super) report: DrillRecord,
    observer: Arc<dyn Observer>,
    warnings: Arc<Mutex<Vec<String>>>,
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Error::internal("a step of the drill failed").caused_by(e)))
}

/// The same, given up when the drill is cancelled: what it waits for ends with the server.
pub(super) async fn blocking_until<T: Send + 'static>(
    cancel: &CancellationToken,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Error::cancelled()),
        done = blocking(work) => done,
    }
}

/// Keeps the warnings of a restore, and passes all on.
struct Keeps {
    to: Arc<dyn Observer>,
    warnings: Arc<Mutex<Vec<String>>>,
}

impl Observer for Keeps {
    fn event(&self, event: &Event) {
        if let Event::Warning { message } = event {
            self.warnings.lock().unwrap_or_else(PoisonError::into_inner).push(message.clone());
        }
        self.to.event(event);
    }
}

pub(super) fn in_words(recovery: &Recovery) -> String {
    match &recovery.target {
        Target::Latest => "latest".to_owned(),
        Target::Immediate => "the end of the backup".to_owned(),
        Target::Time(time) => format!("time {time}"),
        Target::Lsn(lsn) => format!("position {lsn}"),
        Target::Xid(xid) => format!("transaction {xid}"),
        Target::Name(name) => format!("restore point {name}"),
    }
}

impl<'a> Run<'a> {
    pub(super) fn new(
        repository: &'a Repository,
        record: &'a BackupRecord,
        mut options: DrillOptions,
    ) -> Result<Self> {
        let is_physical = record.kind == physical::KIND;
        if !is_physical && record.kind != logical::KIND {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("no server runs on a {} backup", record.kind),
            ));
        }
        let fact = |name: &str| record.source.get(name).and_then(Value::as_str);
        let version = fact("server_version").or_else(|| fact("pg_dump_version"));
        let major = version.and_then(major_of).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "the backup does not say of which version its server was")
        })?;
        // It must take statements in the end.
        options.recovery.action = TargetAction::Promote;
        options.recovery.standby = None;
        options.recovery.keep_archiving = false;
        let jobs = options
            .jobs
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
            .max(1);
        let started = Timestamp::now();
        let report = DrillRecord {
            format: FORMAT,
            id: BackupId::new(started, "drill", Ulid::generate().random())?,
            cluster: record.cluster.clone(),
            backup: record.id.clone(),
            kind: record.kind.clone(),
            target: if is_physical {
                in_words(&options.recovery)
            } else {
                "the snapshot of the backup".to_owned()
            },
            started,
            finished: started,
            host: host_name(),
            tool: Tool::this(),
            place: String::new(),
            server_version: None,
            raw_bytes: 0,
            phases: Vec::new(),
            rto_seconds: 0.0,
            recovered: None,
            compared: None,
            good: false,
            error: None,
            warnings: Vec::new(),
            other: Map::new(),
        };
        let warnings = Arc::new(Mutex::new(Vec::new()));
        let to = options.observer.clone().unwrap_or_else(|| Arc::new(Silent));
        let observer = Arc::new(Keeps { to, warnings: Arc::clone(&warnings) });
        Ok(Self { repository, record, options, jobs, major, report, observer, warnings })
    }

    pub(super) async fn run(mut self, cancel: &CancellationToken) -> Result<DrillRecord> {
        let parent = self.options.work_dir.clone().unwrap_or_else(default_parent);
        let (tools, docker, image) =
            (self.options.tools.clone(), self.options.docker, self.options.image.clone());
        let major = self.major;
        let (place, mut at, removed) = blocking(move || {
            let place = Place::find(&tools, major, docker, image.as_deref())?;
            let removed = workplace::sweep(&parent);
            let at = Workplace::make(&parent, place.owner()?)?;
            Ok((place, at, removed))
        })
        .await?;
        for folder in removed {
            let what = format!("removed {}, which a killed drill left", folder.display());
            self.observer.event(&Event::Step { what });
        }
        self.report.place = place.to_string();
        let (mut at, programs) = blocking(move || {
            let programs = place.programs(&mut at, major)?;
            Ok((at, programs))
        })
        .await?;
        let done = self.steps(&mut at, programs, cancel).await;
        blocking(move || {
            drop(at);
            Ok(())
        })
        .await?;
        let cancelled = cancel.is_cancelled();
        match done {
            Err(_) if cancelled => return Err(Error::cancelled()),
            Err(error) => {
                self.report.error = Some(Failure {
                    kind: error.kind().name().to_owned(),
                    code: error.kind().code(),
                    message: error.with_causes(),
                });
            }
            Ok(()) => {
                self.report.good = self.report.phases.iter().all(|phase| phase.outcome != Outcome::Failed);
            }
        }
        let timed = |phase: &&Phase| matches!(phase.step, Step::Restore | Step::Recover);
        self.report.rto_seconds = self.report.phases.iter().filter(timed).map(|phase| phase.seconds).sum();
        self.report.warnings.append(&mut self.warnings.lock().unwrap_or_else(PoisonError::into_inner));
        self.report.finished = Timestamp::now();
        self.keep().await?;
        Ok(self.report)
    }

    /// Keeps the record, marks the backup, and notes the drill in the audit log.
    async fn keep(&self) -> Result<()> {
        let (report, record) = (&self.report, self.record);
        let mut act = Act::new("drill").backups([&record.id]).detail("drill", report.id.as_str());
        act = act.detail("good", report.good);
        let outcome = match &report.error {
            Some(error) => audit::Outcome::Failed(error.kind.clone()),
            None => audit::Outcome::Done,
        };
        audit::note_if_possible(self.repository, &record.cluster, act, outcome).await;
        let verb =
            if report.good { Some(Verb::VerifiedRaw) } else { report.is_damage().then_some(Verb::Damaged) };
        if let Some(verb) = verb {
            let note = format!("drill {}", report.id);
            if let Err(error) = self.repository.mark(&record.cluster, &record.id, verb, Some(&note)).await {
                tracing::warn!(%error, "the backup was not marked");
            }
        }
        report.store(self.repository).await.map_err(|e| e.doing("keeping the record of the drill"))
    }

    async fn steps(
        &mut self,
        at: &mut Workplace,
        programs: ServerPrograms,
        cancel: &CancellationToken,
    ) -> Result<()> {
        // The folder is the server's user's alone, and so is its socket.
        at.write("pg_hba.conf", "local all all trust\n")?;
        let user = if self.record.kind == physical::KIND {
            self.options.user.clone()
        } else {
            "postgres".to_owned()
        };
        let server = format!("host='{}' port=5432 user='{user}' dbname=postgres", at.path().display());
        let server = ConnInfo::resolve(&server, &Environment::default())?;
        let databases = if self.record.kind == physical::KIND {
            self.physical(at, programs, cancel).await?;
            self.compare(&server, cancel).await?;
            vec!["postgres".to_owned()]
        } else {
            self.logical(at, programs, &server, cancel).await?
        };
        let session = server.connect().await.map_err(|e| {
            e.with_hint("where the cluster's superuser is not postgres, name it: --user, or user in [drill]")
        })?;
        self.report.server_version = Some(session.server_version().await?.1);
        drop(session);
        let Some(cluster) = at.cluster.clone() else {
            return Err(Error::internal("a drill without a server"));
        };
        let databases =
            if self.options.databases.is_empty() { databases } else { self.options.databases.clone() };
        let checks: Arc<Vec<Check>> = Arc::new(self.options.checks.clone());
        self.step(Step::Checks, cancel, look::checks(&server, &databases, &checks)).await?;
        let (own, socket, jobs) = (cluster.clone(), at.path().to_owned(), self.jobs);
        let work = blocking_until(cancel, move || look::amcheck(&own, &socket, &user, jobs));
        self.step(Step::Amcheck, cancel, work).await?;
        if self.record.kind == physical::KIND {
            let until = cancel.clone();
            let work = blocking_until(cancel, move || look::checksums(&cluster, jobs, &until));
            self.step(Step::Checksums, cancel, work).await?;
        }
        Ok(())
    }

    /// Does a step, and writes down what came of it.
    pub(super) async fn step(
        &mut self,
        step: Step,
        cancel: &CancellationToken,
        work: impl Future<Output = Result<Looked>>,
    ) -> Result<()> {
        let what = match step {
            Step::Restore => "restoring",
            Step::Recover => "starting the server",
            Step::Amcheck => "checking tables and indexes",
            Step::Compare if self.record.kind == physical::KIND => "comparing rows with a logical backup",
            Step::Compare => "comparing rows with the backup",
            Step::Checks => "running checks",
            Step::Checksums => "reading all pages",
        };
        self.observer.event(&Event::Step { what: what.to_owned() });
        let begun = Instant::now();
        let done = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Error::cancelled()),
            done = work => done,
        };
        let (looked, error) = match done {
            Ok(looked) => (looked, None),
            Err(error) => (
                Looked { outcome: Outcome::Failed, note: what.to_owned(), found: vec![error.with_causes()] },
                Some(error),
            ),
        };
        let Looked { outcome, note, found } = looked;
        let (findings, seconds) = (found.len() as u64, begun.elapsed().as_secs_f64());
        self.report.phases.push(Phase { step, outcome, seconds, findings, note, found });
        error.map_or(Ok(()), |error| Err(error.doing(what)))
    }

    pub(super) fn builder(&self) -> RestoreBuilder {
        Restore::builder()
            .backup(self.repository.clone(), self.record.clone())
            .jobs(self.jobs)
            .observer(Arc::clone(&self.observer))
            .shared_encryptor(self.options.encryptor.clone())
    }
}
