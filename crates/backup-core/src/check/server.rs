use std::str::FromStr;

use super::Report;
use crate::error::Result;
use crate::postgres::{ConnInfo, Session};

const AREA: &str = "server";
const ARCHIVING: &str = "archiving";
/// WAL that an idle slot may hold back before it is worth a word.
const MUCH_WAL: u64 = 1 << 30;

/// Which backups the server is to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Logical ones, of the database that the connection names.
    pub logical: bool,
    /// Physical ones.
    pub physical: bool,
}

/// Looks at a server: whether it is reached, whether the role may do what backups need, and what would stop them.
pub async fn check_server(connection: &ConnInfo, wanted: Wanted, report: &mut Report) {
    let Some(session) = report.take(AREA, connection.connect().await) else { return };
    let Some((_, version)) = report.take(AREA, session.server_version().await) else { return };
    report.good(AREA, format!("PostgreSQL {version} answers"));
    let Ok(Some(role)) = Role::read(&session).await else { return };
    if wanted.logical {
        let result = logical(&session, &role, report).await;
        report.take(AREA, result);
    }
    if wanted.physical {
        let result = physical(&session, &role, report).await;
        report.take(AREA, result);
    }
    let result = pages(&session, report).await;
    report.take(AREA, result);
    let result = archiver(&session, report).await;
    report.take(ARCHIVING, result);
    let result = slots(&session, report).await;
    report.take(ARCHIVING, result);
}

struct Role {
    name: String,
    superuser: bool,
    replication: bool,
    bypass_rls: bool,
}

impl Role {
    async fn read(session: &Session) -> Result<Option<Self>> {
        let sql = "SELECT rolname, rolsuper, rolreplication, rolbypassrls FROM pg_catalog.pg_roles \
                   WHERE rolname = current_user";
        let rows = session.rows(sql).await?;
        let yes = |value: &Option<String>| value.as_deref() == Some("t");
        Ok(rows.first().and_then(|row| match row.as_slice() {
            [Some(name), superuser, replication, bypass_rls] => Some(Self {
                name: name.clone(),
                superuser: yes(superuser),
                replication: yes(replication),
                bypass_rls: yes(bypass_rls),
            }),
            _ => None,
        }))
    }
}

async fn number<T: FromStr>(session: &Session, sql: &str) -> Result<Option<T>> {
    Ok(session.value(sql).await?.and_then(|value| value.parse().ok()))
}

const TABLES: &str = "FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' \
     AND n.nspname <> 'information_schema'";

async fn logical(session: &Session, role: &Role, report: &mut Report) -> Result<()> {
    let tables: u64 = number(session, &format!("SELECT count(*) {TABLES}")).await?.unwrap_or(0);
    if !role.superuser {
        let unreadable = "AND NOT pg_catalog.has_table_privilege(c.oid, 'SELECT')";
        let unreadable: u64 =
            number(session, &format!("SELECT count(*) {TABLES} {unreadable}")).await?.unwrap_or(0);
        if unreadable > 0 {
            report.bad(
                AREA,
                format!("the role {} may not read {unreadable} of {tables} tables", role.name),
                format!("GRANT pg_read_all_data TO {}", role.name),
            );
        }
    }
    if !role.superuser && !role.bypass_rls {
        let hidden = "AND pg_catalog.row_security_active(c.oid)";
        let hidden: u64 = number(session, &format!("SELECT count(*) {TABLES} {hidden}")).await?.unwrap_or(0);
        if hidden > 0 {
            report.bad(
                AREA,
                format!("row security hides rows of {hidden} tables from the role {}", role.name),
                format!("ALTER ROLE {} BYPASSRLS, as a superuser", role.name),
            );
        }
    }
    lock_table(session, tables, report).await
}

/// A logical backup holds a lock on every table (`LockManagerShmemSize` in `lock.c` says how many there is room for; what
/// is left of shared memory may take some more).
async fn lock_table(session: &Session, tables: u64, report: &mut Report) -> Result<()> {
    let room = "SELECT current_setting('max_locks_per_transaction')::bigint * \
                (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint)";
    let Some(room) = number::<u64>(session, room).await? else { return Ok(()) };
    let found = format!("the server has room for {room} locks, and the database has {tables} tables");
    if tables > room {
        let connections: u64 = number(session, "SHOW max_connections").await?.unwrap_or(100);
        let enough = (tables * 2).div_ceil(connections.max(1));
        report.bad(AREA, found, format!("set max_locks_per_transaction = {enough} and restart the server"));
    } else if tables * 10 > room * 7 {
        report.warn(AREA, found, "raise max_locks_per_transaction at the next restart");
    } else {
        report.good(AREA, found);
    }
    Ok(())
}

async fn physical(session: &Session, role: &Role, report: &mut Report) -> Result<()> {
    if !role.superuser && !role.replication {
        report.bad(
            AREA,
            format!("the role {} may not replicate, which a physical backup needs", role.name),
            format!("ALTER ROLE {} REPLICATION", role.name),
        );
        return Ok(());
    }
    let identified = match session.replication().await {
        Ok(mut replication) => replication.identify().await,
        Err(error) => Err(error),
    };
    if report.take(AREA, identified).is_some() {
        report.good(AREA, "it takes connections for replication");
    }
    let senders = "SELECT current_setting('max_wal_senders')::bigint - (SELECT count(*) FROM \
                   pg_catalog.pg_stat_activity WHERE backend_type = 'walsender')";
    // Two of a backup: files and WAL.
    if let Some(free) = number::<i64>(session, senders).await?
        && free < 2
    {
        report.bad(
            AREA,
            format!("{free} WAL senders are free, and a physical backup takes two"),
            "raise max_wal_senders and restart the server, or end a standby's connection that is not needed",
        );
    }
    let free_slots = "SELECT current_setting('max_replication_slots')::bigint - (SELECT count(*) FROM \
                      pg_catalog.pg_replication_slots)";
    if let Some(free) = number::<i64>(session, free_slots).await?
        && free < 1
    {
        report.bad(
            AREA,
            "no replication slot is free, and a physical backup makes one for itself",
            "drop a slot that nobody uses (pg_drop_replication_slot), or raise max_replication_slots and restart",
        );
    }
    if session.value("SHOW wal_level").await?.as_deref() == Some("minimal") {
        report.bad(AREA, "wal_level is minimal", "set wal_level = replica and restart the server");
    }
    Ok(())
}

async fn pages(session: &Session, report: &mut Report) -> Result<()> {
    if session.value("SHOW data_checksums").await?.as_deref() != Some("on") {
        report.warn(
            AREA,
            "the cluster has no page checksums: pages that a disk damaged go into backups unseen",
            "pg_checksums --enable on the stopped server",
        );
        return Ok(());
    }
    let failures = "SELECT sum(checksum_failures) FROM pg_catalog.pg_stat_database";
    if let Some(failures) = number::<u64>(session, failures).await?.filter(|failures| *failures > 0) {
        report.bad(
            AREA,
            format!("{failures} pages failed their checksums since the statistics were reset"),
            "see the server's log for which; restore them from a backup from before the damage",
        );
    }
    Ok(())
}

async fn archiver(session: &Session, report: &mut Report) -> Result<()> {
    if session.value("SHOW archive_mode").await?.as_deref() == Some("off") {
        return Ok(());
    }
    let set = "SELECT current_setting('archive_command') NOT IN ('', '(disabled)') OR \
               current_setting('archive_library') <> ''";
    if session.value(set).await?.as_deref() == Some("f") {
        report.bad(
            ARCHIVING,
            "archive_mode is on and nothing archives: WAL piles up in pg_wal",
            "archive_command = 'pgark wal push %p', and reload the server",
        );
        return Ok(());
    }
    let failing = "SELECT last_failed_wal, last_failed_time::text FROM pg_catalog.pg_stat_archiver WHERE \
                   last_failed_time > coalesce(last_archived_time, '-infinity')";
    if let Some([Some(wal), Some(time)]) = session.rows(failing).await?.first().map(Vec::as_slice) {
        report.bad(
            ARCHIVING,
            format!("archiving fails: {wal} at {time}"),
            "see the server's log for the words of archive_command; pgark wal push says what to do",
        );
        return Ok(());
    }
    report.good(ARCHIVING, "the server archives, and the last try was a success");
    Ok(())
}

async fn slots(session: &Session, report: &mut Report) -> Result<()> {
    let idle = "SELECT slot_name, coalesce(wal_status, ''), pg_catalog.pg_wal_lsn_diff(CASE WHEN \
                pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_receive_lsn() ELSE \
                pg_catalog.pg_current_wal_lsn() END, restart_lsn)::bigint FROM \
                pg_catalog.pg_replication_slots WHERE NOT active AND NOT temporary";
    for row in session.rows(idle).await? {
        let [Some(slot), Some(status), behind] = row.as_slice() else { continue };
        let behind: u64 = behind.as_deref().and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
        if status == "lost" {
            report.bad(
                ARCHIVING,
                format!("the slot {slot} has lost its WAL, and whoever used it cannot go on"),
                "drop it; pgark wal receive --create-slot makes a new one, and a new backup closes the gap",
            );
        } else if behind > MUCH_WAL {
            report.warn(
                ARCHIVING,
                format!("the slot {slot} is idle and holds back {} MiB of WAL", behind >> 20),
                "start what uses it, or drop it: pg_wal grows until the disk is full",
            );
        }
    }
    Ok(())
}
