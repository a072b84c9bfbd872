use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use pgark::crypt::{Age, IdentityFile, generate_identity};
use pgark::logical::{Dump, Load};
use pgark::postgres::{Session, TempServer, TempServerOptions};
use pgark::repository::{Catalog, ClusterName};
use pgark::verify::{VerifyOptions, verify};
use pgark::{
    Backup, CancellationToken, Error, ErrorKind, Repository, Restore, Result, StoreOptions, open_store,
};
use secrecy::ExposeSecret;
use serde_json::json;

mod to_a_moment;

use crate::args::{Cli, DemoArgs};
use crate::render;

/// A small shop. `{rows}` orders, a tenth as many customers.
const SHOP: &str = "
CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL, email text UNIQUE, since date NOT NULL);
INSERT INTO customers SELECT i, 'Customer ' || i, 'c' || i || '@example.org', date '2020-01-01' + i % 2000
  FROM generate_series(1, {rows} / 10 + 1) i;
CREATE TABLE orders (id bigint PRIMARY KEY, customer int NOT NULL REFERENCES customers, at timestamptz NOT NULL,
  amount numeric(12,2) NOT NULL, note jsonb NOT NULL);
INSERT INTO orders SELECT i, 1 + i % ({rows} / 10 + 1), timestamptz '2026-01-01' + i * interval '7 seconds', (i * 37 % 99991) / 100.0,
  jsonb_build_object('session', md5(i::text), 'items', i % 9, 'agent', 'Mozilla/5.0 (X11; Linux x86_64)')
  FROM generate_series(1, {rows}) i;
CREATE INDEX orders_at ON orders (at);
CREATE VIEW best_customers AS SELECT customer, sum(amount) AS total FROM orders GROUP BY customer;
";

/// What is compared: counts, and sums over the contents of all rows.
const COMPARED: &str = "
SELECT 'customers', count(*), sum(hashtext(customers::text)::bigint) FROM customers UNION ALL
SELECT 'orders', count(*), sum(hashtext(orders::text)::bigint) FROM orders UNION ALL
SELECT 'best_customers', count(*), sum(hashtext(best_customers::text)::bigint) FROM best_customers ORDER BY 1";

/// Prints a step when it is done, with its time.
struct Steps {
    quiet: bool,
    begun: Instant,
    done: Vec<serde_json::Value>,
}

impl Steps {
    fn done(&mut self, what: &str) -> Result<()> {
        let seconds = self.begun.elapsed().as_secs_f64();
        self.begun = Instant::now();
        self.done.push(json!({"step": what, "seconds": seconds}));
        if self.quiet { Ok(()) } else { render::print(&format!("{seconds:6.1} s  {what}\n")) }
    }
}

/// Everything it makes is in one temporary folder and goes with it.
pub(super) async fn run(cli: &Cli, args: &DemoArgs, cancel: &CancellationToken) -> Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("pgark-demo-")
        .tempdir()
        .map_err(|e| Error::io("making a folder", e))?;
    let mut steps = Steps { quiet: cli.quiet || cli.json, begun: Instant::now(), done: Vec::new() };
    let total = Instant::now();
    let work = demo(folder.path(), args, &mut steps);
    tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(Error::cancelled()),
        done = work => done?,
    }
    drop(folder);
    steps.done("removed the throwaway server, the repository and the key")?;
    if cli.json {
        return render::print_json(&json!({"steps": steps.done, "seconds": total.elapsed().as_secs_f64()}));
    }
    if cli.quiet {
        Ok(())
    } else {
        render::print(&format!("{:6.1} s  in all\n", total.elapsed().as_secs_f64()))
    }
}

async fn compared(session: &Session) -> Result<Vec<Vec<Option<String>>>> {
    session.rows(COMPARED).await
}

async fn demo(folder: &Path, args: &DemoArgs, steps: &mut Steps) -> Result<()> {
    let cancel = CancellationToken::new();
    let server = tokio::task::spawn_blocking(|| TempServer::start(&TempServerOptions::default())).await;
    let server = server.map_err(|e| Error::internal("starting the server failed").caused_by(e))??;
    steps.done(&format!("started a throwaway PostgreSQL {}", server.major()))?;

    let maintenance = server.conninfo("postgres")?.connect().await?;
    maintenance.rows("CREATE DATABASE shop").await?;
    let session = server.conninfo("shop")?.connect().await?;
    session.rows(&SHOP.replace("{rows}", &args.rows.max(10).to_string())).await?;
    let before = compared(&session).await?;
    let size = session
        .value("SELECT pg_database_size(current_database())")
        .await?
        .and_then(|s| s.parse().ok())
        .unwrap_or(0);
    drop(session);
    steps.done(&format!("made the database shop: {} orders, {}", args.rows.max(10), render::bytes(size)))?;

    let (identity, recipient) = generate_identity(jiff::Timestamp::now());
    let reader =
        || -> Result<Age> { Ok(Age::new().identities(IdentityFile::parse(identity.expose_secret())?)) };
    let store = open_store(&folder.join("backups").display().to_string(), &StoreOptions::default())?;
    let (repository, _) = Repository::init(store).await?;
    let backup = Backup::builder()
        .repository(repository.clone())
        .dumper(Dump::new(server.conninfo("shop")?))
        .encryptor(Age::new().to(&recipient)?)
        .label("demo")
        .build()?
        .run(&cancel)
        .await?;
    steps.done(&format!(
        "backed it up, encrypted to {}…: {} became {}",
        &recipient[..12],
        render::bytes(backup.raw_bytes),
        render::bytes(backup.backup.stored_bytes)
    ))?;

    let catalog = Catalog::load(&repository, &ClusterName::default()).await?;
    steps.done(&format!("listed the repository:\n{}", indent(&render::table(catalog.backups()))))?;

    let record = repository.record(catalog.cluster(), &catalog.find("latest")?.id).await?;
    let mut options = VerifyOptions::default();
    options.encryptor = Some(Arc::new(reader()?));
    let report = verify(&repository, &record, options, &cancel).await?;
    if !report.is_good() {
        return Err(Error::new(
            ErrorKind::Integrity,
            format!("the demo's backup is damaged: {:?}", report.findings),
        ));
    }
    steps.done(&format!(
        "verified {} objects, {} of contents",
        report.objects,
        render::bytes(report.raw_bytes)
    ))?;

    maintenance.rows("DROP DATABASE shop").await?;
    steps.done("destroyed the database shop")?;

    let restored = Restore::builder()
        .backup(repository, record)
        .encryptor(reader()?)
        .restorer(Load::into(server.conninfo("shop")?))
        .build()?
        .run(&cancel)
        .await?;
    steps.done(&format!("restored it: {}", render::bytes(restored.raw_bytes)))?;

    let after = compared(&server.conninfo("shop")?.connect().await?).await?;
    if before != after {
        return Err(Error::new(
            ErrorKind::Integrity,
            "the restored database differs from what was backed up",
        )
        .caused_by(format!("before: {before:?}, after: {after:?}")));
    }
    let shown: Vec<String> = after.iter().map(|row| format!("{} {}", text(row, 0), text(row, 1))).collect();
    steps.done(&format!("compared rows and their contents, all equal: {}", shown.join(", ")))?;
    to_a_moment::show(folder, &server, &identity, &recipient, steps).await
}

fn text(row: &[Option<String>], column: usize) -> &str {
    row.get(column).and_then(Option::as_deref).unwrap_or("-")
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("          {line}")).collect::<Vec<_>>().join("\n")
}
