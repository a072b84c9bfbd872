//! Restores into databases that are there, of parts of a backup, and their failures.

#![allow(clippy::unwrap_used)]

mod support;

use pgark::logical::{Dump, Existing, Load, LoadOptions, Selection};
use pgark::postgres::{Session, TempServer};
use pgark::repository::{BackupRecord, ClusterName};
use pgark::{Backup, CancellationToken, Error, ErrorKind, Repository, Restore, Restored, Result};
use support::{connect, conninfo, containers, fingerprint, left_out, memory_repository, server};

/// What tables can have, and what refers to each other.
const SHOP: &str = r#"
    CREATE SCHEMA "Odd shop";
    CREATE TYPE public.state AS ENUM ('new', 'paid');
    CREATE FUNCTION public.stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.note := NEW.note || '!'; RETURN NEW; END $$;
    CREATE TABLE public.customers (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL);
    CREATE TABLE public.orders (id serial PRIMARY KEY, customer int NOT NULL REFERENCES public.customers,
      state public.state DEFAULT 'new', note text CHECK (note <> ''), total numeric);
    CREATE INDEX orders_by_total ON public.orders (total);
    CREATE STATISTICS public.orders_stats ON customer, state FROM public.orders;
    CREATE TRIGGER stamped BEFORE INSERT ON public.orders FOR EACH ROW EXECUTE FUNCTION public.stamp();
    CREATE TABLE "Odd shop"."items, more" (id int REFERENCES public.orders, "Größe" text);
    CREATE VIEW public.paid AS SELECT * FROM public.orders WHERE state = 'paid';
    CREATE MATERIALIZED VIEW "Odd shop".totals AS SELECT customer, sum(total) FROM public.orders GROUP BY 1;
    CREATE TABLE "Odd shop".parted (id int, at date) PARTITION BY RANGE (at);
    CREATE TABLE "Odd shop".parted_a PARTITION OF "Odd shop".parted FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
    CREATE INDEX ON "Odd shop".parted (id);
    COMMENT ON TABLE public.orders IS 'what was ordered';
    COMMENT ON CONSTRAINT orders_customer_fkey ON public.orders IS 'who';
    COMMENT ON COLUMN public.orders.note IS 'a note';
    GRANT SELECT ON public.orders TO PUBLIC;
    INSERT INTO public.customers (name) SELECT 'näme ' || i FROM generate_series(1, 50) i;
    INSERT INTO public.orders (customer, state, note, total) SELECT 1 + i % 50, 'paid', 'n' || i, i FROM generate_series(1, 300) i;
    INSERT INTO "Odd shop"."items, more" SELECT 1 + i % 300, 'g' || i FROM generate_series(1, 500) i;
    INSERT INTO "Odd shop".parted SELECT i, date '2026-01-01' + i FROM generate_series(1, 200) i;
    REFRESH MATERIALIZED VIEW "Odd shop".totals;
    SELECT lo_from_bytea(4711, 'a large object');
"#;

struct Shop {
    server: TempServer,
    repository: Repository,
    record: BackupRecord,
}

impl Shop {
    async fn new() -> Self {
        let server = server();
        support::sql(&server, "postgres", "CREATE DATABASE shop").await;
        support::sql(&server, "shop", SHOP).await;
        let (repository, _) = memory_repository().await;
        let record = backup(&repository, &server.url("shop")).await;
        Self { server, repository, record }
    }

    async fn session(&self, database: &str) -> Session {
        connect(&self.server.url(database)).await
    }

    async fn sql(&self, database: &str, sql: &str) -> Vec<Vec<Option<String>>> {
        support::sql(&self.server, database, sql).await
    }

    async fn value(&self, database: &str, sql: &str) -> String {
        self.sql(database, sql).await.remove(0).remove(0).unwrap_or_default()
    }

    fn load(&self, database: &str) -> Load {
        Load::into(self.server.conninfo(database).unwrap())
    }

    async fn restore(&self, load: Load) -> Result<Restored> {
        restore(&self.repository, &self.record, load).await
    }

    async fn fails(&self, load: Load, kind: ErrorKind, words: &[&str]) -> Error {
        let error = self.restore(load).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        let said = format!("{error:?}");
        for word in words {
            assert!(said.contains(word), "{word:?} is not in {said}");
        }
        error
    }

    /// Databases beside those that every server has.
    async fn databases(&self) -> Vec<String> {
        let sql = "SELECT datname FROM pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1') ORDER BY 1";
        self.sql("postgres", sql).await.into_iter().filter_map(|mut row| row.remove(0)).collect()
    }
}

async fn backup(repository: &Repository, source: &str) -> BackupRecord {
    let backup =
        Backup::builder().repository(repository.clone()).dumper(Dump::new(conninfo(source))).build().unwrap();
    let summary = backup.run(&CancellationToken::new()).await.unwrap();
    repository.record(&ClusterName::default(), &summary.backup.id).await.unwrap()
}

async fn restore(repository: &Repository, record: &BackupRecord, load: Load) -> Result<Restored> {
    let restore =
        Restore::builder().backup(repository.clone(), record.clone()).restorer(load).jobs(3).build().unwrap();
    restore.run(&CancellationToken::new()).await
}

fn options(set: impl FnOnce(&mut LoadOptions)) -> LoadOptions {
    let mut options = LoadOptions::default();
    set(&mut options);
    options
}

fn tables(names: &[&str]) -> LoadOptions {
    options(|o| o.tables = names.iter().map(|name| name.parse().unwrap()).collect())
}

/// What a table has beside rows, in words.
const BELONGINGS: &str = "SELECT string_agg(what, '; ' ORDER BY what) FROM (
    SELECT 'index ' || indexname FROM pg_indexes WHERE tablename = 'orders' UNION ALL
    SELECT 'constraint ' || conname FROM pg_constraint WHERE conrelid = 'public.orders'::regclass AND contype <> 'n' UNION ALL
    SELECT 'trigger ' || tgname FROM pg_trigger WHERE tgrelid = 'public.orders'::regclass AND NOT tgisinternal UNION ALL
    SELECT 'sequence ' || pg_get_serial_sequence('public.orders', 'id') UNION ALL
    SELECT 'next ' || last_value FROM public.orders_id_seq UNION ALL
    SELECT 'statistics ' || stxname FROM pg_statistic_ext UNION ALL
    SELECT 'comment ' || description FROM pg_description WHERE objoid = 'public.orders'::regclass UNION ALL
    SELECT 'acl ' || relacl::text FROM pg_class WHERE oid = 'public.orders'::regclass) x (what)";

#[tokio::test(flavor = "multi_thread")]
async fn a_table_comes_with_all_that_belongs_to_it() {
    let shop = Shop::new().await;
    // Without the table that it refers to, into a new database.
    shop.restore(shop.load("alone").options(tables(&["public.orders"]))).await.unwrap();
    let alone = shop.value("alone", BELONGINGS).await;
    let whole = shop.value("shop", BELONGINGS).await;
    assert_eq!(alone, whole.replace("constraint orders_customer_fkey; ", ""), "{whole}");
    assert_eq!(shop.value("alone", "SELECT count(*) FROM public.orders").await, "300");
    let others = "SELECT count(*) FROM pg_class WHERE relkind IN ('r','v','m','p') AND relnamespace::regnamespace::text !~ '^(pg_|information)'";
    assert_eq!(shop.value("alone", others).await, "1");
    assert_eq!(shop.value("alone", "SELECT count(*) FROM pg_largeobject").await, "0");
    // Beside the table that it refers to, in a database with other things in it.
    let sql =
        "CREATE TABLE customers (id int PRIMARY KEY); INSERT INTO customers SELECT generate_series(1, 50)";
    shop.sql("postgres", "CREATE DATABASE live").await;
    shop.sql("live", sql).await;
    shop.restore(shop.load("live").options(tables(&["public.orders"]))).await.unwrap();
    assert_eq!(shop.value("live", BELONGINGS).await, whole);
    // Both together, with a partitioned table.
    let names = ["public.orders", "public.customers", "\"Odd shop\".parted"];
    shop.restore(shop.load("several").options(tables(&names))).await.unwrap();
    assert_eq!(shop.value("several", BELONGINGS).await, whole);
    assert_eq!(shop.value("several", "SELECT count(*) FROM \"Odd shop\".parted").await, "200");
    let comment = "SELECT count(*) FROM pg_description d JOIN pg_constraint c ON c.oid = d.objoid WHERE description = 'who'";
    assert_eq!(shop.value("several", comment).await, "1");
    let next = "INSERT INTO public.customers (name) VALUES ('x') RETURNING id";
    assert_eq!(shop.value("several", next).await, "51");
    // A partition alone is a table like others.
    shop.restore(shop.load("part").options(tables(&["\"Odd shop\".parted_a"]))).await.unwrap();
    assert_eq!(shop.value("part", "SELECT count(*) FROM \"Odd shop\".parted_a").await, "200");
    shop.fails(
        shop.load("none").options(tables(&["public.parted_a"])),
        ErrorKind::Usage,
        &["Odd shop.parted_a"],
    )
    .await;
    assert!(!shop.databases().await.contains(&"none".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_comes_with_what_it_needs() {
    let shop = Shop::new().await;
    let odd = || options(|o| o.schemas = vec!["Odd shop".to_owned()]);
    // The materialized view reads public.orders, which comes as well.
    shop.restore(shop.load("odd").options(odd())).await.unwrap();
    assert_eq!(shop.value("odd", "SELECT count(*) FROM \"Odd shop\".\"items, more\"").await, "500");
    assert_eq!(shop.value("odd", "SELECT count(*) FROM \"Odd shop\".totals").await, "50");
    let error = shop
        .fails(shop.load("odd").options(odd()), ErrorKind::Unsupported, &["there already", "items, more"])
        .await;
    assert!(error.to_string().contains("nothing") || error.hint().unwrap().contains("nothing was changed"));
    assert_eq!(shop.value("odd", "SELECT count(*) FROM \"Odd shop\".\"items, more\"").await, "500");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_gets_another_name() {
    let shop = Shop::new().await;
    let rename = |names: &[(&str, &str)]| {
        options(|o| {
            o.rename_schemas = names.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        })
    };
    // Beside the one that is there, with what it needs.
    let into_shop = shop.load("shop").options(rename(&[("Odd shop", "then"), ("public", "public then")]));
    shop.restore(into_shop).await.unwrap();
    for (table, copy) in [
        ("public.orders", "\"public then\".orders"),
        ("\"Odd shop\".\"items, more\"", "\"then\".\"items, more\""),
        ("\"Odd shop\".totals", "\"then\".totals"),
        ("\"Odd shop\".parted", "\"then\".parted"),
    ] {
        let sum =
            |table| format!("SELECT count(*)::text || sum(hashtextextended(t::text, 7)) FROM {table} t");
        assert_eq!(shop.value("shop", &sum(table)).await, shop.value("shop", &sum(copy)).await, "{table}");
    }
    let keys = "SELECT string_agg(conrelid::regclass || ' ' || confrelid::regclass, '; ' ORDER BY 1) FROM pg_constraint \
                WHERE contype = 'f' AND connamespace = '\"public then\"'::regnamespace";
    assert_eq!(shop.value("shop", keys).await, "\"public then\".orders \"public then\".customers");
    let next = "INSERT INTO \"public then\".orders (customer, note) VALUES (1, 'x') RETURNING id";
    assert_eq!(shop.value("shop", next).await, "301");
    assert_eq!(shop.databases().await, ["shop"], "the scratch database is gone");
    let again = shop.load("shop").options(rename(&[("Odd shop", "then")]));
    shop.fails(again, ErrorKind::Unsupported, &["the schema then is there already"]).await;
    // One table, which refers to one that stays behind.
    let mut one = rename(&[("public", "one")]);
    one.tables = vec!["public.orders".parse().unwrap()];
    shop.restore(shop.load("shop").options(one)).await.unwrap();
    assert_eq!(shop.value("shop", "SELECT count(*) FROM one.orders").await, "300");
    assert_eq!(
        shop.value(
            "shop",
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'one'::regnamespace AND relkind = 'r'"
        )
        .await,
        "1"
    );
    // In a new database.
    shop.restore(shop.load("new").options(rename(&[("Odd shop", "then")]))).await.unwrap();
    assert_eq!(shop.value("new", "SELECT count(*) FROM \"then\".\"items, more\"").await, "500");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_in_the_middle_of_adding_is_taken_back() {
    let shop = Shop::new().await;
    shop.sql("postgres", "CREATE DATABASE live").await;
    // The foreign key to the customers that are there cannot hold.
    shop.sql("live", "CREATE TABLE customers (id int PRIMARY KEY); INSERT INTO customers VALUES (1)").await;
    let words = ["FK CONSTRAINT public.orders orders_customer_fkey", "violates foreign key", "of postgres"];
    shop.fails(shop.load("live").options(tables(&["public.orders"])), ErrorKind::Database, &words).await;
    let left = "SELECT string_agg(relname, ',') FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind <> 'i'";
    assert_eq!(shop.value("live", left).await, "customers");
    assert_eq!(shop.value("live", "SELECT count(*) FROM pg_type WHERE typname = 'state'").await, "0");
    // Or everything that can be restored is, and the rest is told.
    let mut going = tables(&["public.orders"]);
    going.keep_going = true;
    shop.fails(
        shop.load("live").options(going),
        ErrorKind::Database,
        &["2 objects failed", "orders_customer_fkey", "COMMENT CONSTRAINT"],
    )
    .await;
    assert_eq!(shop.value("live", "SELECT count(*) FROM orders").await, "300");
    assert_eq!(shop.value("live", "SELECT count(*) FROM pg_trigger WHERE tgname = 'stamped'").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_the_database_does_not_take_are_told() {
    let shop = Shop::new().await;
    shop.sql("postgres", "CREATE DATABASE live").await;
    let guard = "CREATE TABLE customers (id int PRIMARY KEY); INSERT INTO customers SELECT generate_series(1, 1000);
         CREATE FUNCTION not_7() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN RETURN CASE WHEN NEW.id = 7 THEN NULL ELSE NEW END; END $$;
         CREATE FUNCTION guard() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
         CREATE TRIGGER guarded BEFORE INSERT ON public.orders FOR EACH ROW EXECUTE FUNCTION public.not_7(); END $$;
         CREATE EVENT TRIGGER guard ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION guard()";
    shop.sql("live", guard).await;
    let words = ["public.orders took 299 rows, and the backup has 300"];
    shop.fails(shop.load("live").options(tables(&["public.orders"])), ErrorKind::Integrity, &words).await;
    assert_eq!(shop.value("live", "SELECT to_regclass('orders') IS NULL").await, "t");
    let mut going = tables(&["public.orders"]);
    going.keep_going = true;
    shop.fails(shop.load("live").options(going), ErrorKind::Database, &words).await;
    assert_eq!(shop.value("live", "SELECT count(*) FROM orders").await, "299");
    assert_eq!(shop.value("live", "SELECT count(*) FROM pg_trigger WHERE tgname = 'stamped'").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_alone_and_rows_alone() {
    let shop = Shop::new().await;
    shop.restore(shop.load("again").options(options(|o| o.schema_only = true))).await.unwrap();
    assert_eq!(shop.value("again", "SELECT count(*) FROM public.orders").await, "0");
    assert_eq!(shop.value("again", "SELECT count(*) FROM pg_largeobject_metadata").await, "0");
    // Triggers act on rows that are loaded: they are not those of the backup then.
    shop.sql("again", "ALTER TABLE orders DISABLE TRIGGER stamped").await;
    shop.restore(shop.load("again").options(options(|o| o.data_only = true))).await.unwrap();
    assert_eq!(
        fingerprint(&shop.session("shop").await).await,
        fingerprint(&shop.session("again").await).await
    );
    assert_eq!(shop.value("again", "SELECT nextval('orders_id_seq')").await, "301");
    // A second time fails at the first key, and leaves everything as it was.
    let error = shop.restore(shop.load("again").options(options(|o| o.data_only = true))).await.unwrap_err();
    assert!(error.to_string().contains("duplicate key"), "{error:?}");
    assert_eq!(shop.value("again", "SELECT count(*) FROM \"Odd shop\".\"items, more\"").await, "500");
    // Without triggers tables may even refer to each other in a circle.
    shop.sql("again", "TRUNCATE customers CASCADE; TRUNCATE \"Odd shop\".parted; SELECT lo_unlink(4711)")
        .await;
    shop.sql("again", "ALTER TABLE orders ENABLE TRIGGER stamped; ALTER TABLE customers ADD FOREIGN KEY (id) REFERENCES orders").await;
    let words = ["circle", "public.customers, public.orders", "--disable-triggers"];
    shop.fails(shop.load("again").options(options(|o| o.data_only = true)), ErrorKind::Conflict, &words)
        .await;
    let disabled = options(|o| {
        o.data_only = true;
        o.disable_triggers = true;
        o.reindex = true;
    });
    shop.restore(shop.load("again").options(disabled)).await.unwrap();
    assert_eq!(
        fingerprint(&shop.session("shop").await).await,
        fingerprint(&shop.session("again").await).await
    );
    // Tables that are missing are named before anything is done.
    shop.sql("again", "DROP TABLE orders CASCADE").await;
    let words = ["public.orders", "missing"];
    shop.fails(shop.load("again").options(options(|o| o.data_only = true)), ErrorKind::Unsupported, &words)
        .await;
    shop.fails(shop.load("nowhere").options(options(|o| o.data_only = true)), ErrorKind::NoDatabase, &[])
        .await;
}

/// What stays with a database when its contents are replaced.
const SETTINGS: &str = "SELECT d.datname, pg_get_userbyid(datdba), datconnlimit, datacl, shobj_description(d.oid, 'pg_database'), \
    (SELECT string_agg(coalesce(setrole::regrole::text, '') || setconfig::text, ';' ORDER BY 1) FROM pg_db_role_setting s WHERE s.setdatabase = d.oid) \
    FROM pg_database d WHERE datname = 'shop'";

async fn live(shop: &Shop) {
    shop.sql(
        "postgres",
        "CREATE ROLE anna LOGIN; CREATE ROLE \"Bob's\"; ALTER DATABASE shop OWNER TO anna; REVOKE ALL ON DATABASE shop FROM PUBLIC; \
         GRANT CONNECT ON DATABASE shop TO \"Bob's\" WITH GRANT OPTION; COMMENT ON DATABASE shop IS 'it''s live'; \
         ALTER DATABASE shop SET search_path TO \"$user\", public, \"Odd shop\"; ALTER DATABASE shop SET work_mem = '5MB'; \
         ALTER ROLE anna IN DATABASE shop SET my.setting = 'a, b'; ALTER DATABASE shop CONNECTION LIMIT 7;",
    )
    .await;
    shop.sql(
        "shop",
        "DELETE FROM \"Odd shop\".\"items, more\"; CREATE TABLE since (x int); INSERT INTO since VALUES (7)",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_replaces_the_contents_and_keeps_the_rest() {
    let shop = Shop::new().await;
    let before = fingerprint(&shop.session("shop").await).await;
    live(&shop).await;
    let settings = shop.sql("postgres", SETTINGS).await;
    shop.fails(shop.load("shop"), ErrorKind::Conflict, &["--swap", "--replace"]).await;

    let connected = shop.session("shop").await;
    let swap = |drop_old| shop.load("shop").existing(Existing::Swap { drop_old });
    shop.fails(swap(false), ErrorKind::Unsupported, &["in use by postgres", "--end-sessions"]).await;
    let done = shop.restore(swap(false).end_sessions(true)).await.unwrap();
    assert!(connected.rows("SELECT 1").await.is_err(), "it was ended");
    assert_eq!(fingerprint(&shop.session("shop").await).await, before);
    assert_eq!(shop.sql("postgres", SETTINGS).await, settings);
    assert_eq!(shop.value("shop", "SHOW search_path").await, "\"$user\", public, \"Odd shop\"");
    let old = done.target["old_database"].as_str().unwrap().to_owned();
    assert!(old.starts_with("shop_pgark_old_20"), "{old}");
    assert_eq!(shop.databases().await, ["shop".to_owned(), old.clone()]);
    assert_eq!(shop.value(&old, "SELECT x FROM since").await, "7");

    shop.sql("shop", "DROP TABLE customers CASCADE").await;
    let done = shop.restore(swap(true)).await.unwrap();
    assert!(done.target["old_database"].is_null());
    assert_eq!(fingerprint(&shop.session("shop").await).await, before);
    assert_eq!(shop.sql("postgres", SETTINGS).await, settings);
    assert_eq!(shop.databases().await, ["shop".to_owned(), old]);
    // Only a whole database takes the place of another.
    let some = swap(false).options(tables(&["public.orders"]));
    shop.fails(some, ErrorKind::Usage, &["whole database"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_that_fails_leaves_the_old_database_as_it_was() {
    let shop = Shop::new().await;
    live(&shop).await;
    let swap = || shop.load("shop").existing(Existing::Swap { drop_old: true });
    let state = async || {
        (
            fingerprint(&shop.session("shop").await).await,
            shop.sql("postgres", SETTINGS).await,
            shop.databases().await,
        )
    };
    let before = state().await;

    // Cancelled in the middle, pg_restore or rows.
    for milliseconds in [150, 400, 800] {
        let cancel = CancellationToken::new();
        let restore = Restore::builder()
            .backup(shop.repository.clone(), shop.record.clone())
            .restorer(swap().end_sessions(true))
            .build()
            .unwrap();
        let run = tokio::spawn({
            let cancel = cancel.clone();
            async move { restore.run(&cancel).await }
        });
        tokio::time::sleep(std::time::Duration::from_millis(milliseconds)).await;
        cancel.cancel();
        match run.await.unwrap() {
            Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled, "{error:?}"),
            Ok(_) => return,
        }
        assert_eq!(state().await, before, "after {milliseconds} ms");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_and_prepared_transactions_are_in_the_way_of_a_swap() {
    let mut options = pgark::postgres::TempServerOptions::default();
    options.settings = vec!["wal_level = logical".to_owned(), "max_prepared_transactions = 5".to_owned()];
    let server = support::server_with(&options);
    support::sql(&server, "postgres", "CREATE DATABASE shop").await;
    support::sql(&server, "shop", SHOP).await;
    let (repository, _) = memory_repository().await;
    let record = backup(&repository, &server.url("shop")).await;
    support::sql(&server, "shop", "SELECT pg_create_logical_replication_slot('downstream', 'test_decoding')")
        .await;
    support::sql(
        &server,
        "shop",
        "CREATE SUBSCRIPTION upstream CONNECTION 'host=/nowhere' PUBLICATION p WITH (connect = false)",
    )
    .await;
    let session = connect(&server.url("shop")).await;
    session
        .rows("BEGIN; INSERT INTO customers (name) VALUES ('x'); PREPARE TRANSACTION 'pending'")
        .await
        .unwrap();
    let load = Load::into(server.conninfo("shop").unwrap()).existing(Existing::Swap { drop_old: false });
    let error = restore(&repository, &record, load.clone()).await.unwrap_err();
    let said = error.to_string();
    for word in ["downstream", "upstream", "pending", "in use by postgres", "this restore would fail"] {
        assert!(said.contains(word), "{word} is not in {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_missing_is_told_at_once() {
    let shop = Shop::new().await;
    shop.sql("postgres", "CREATE ROLE \"Odd owner\"; CREATE ROLE reader; CREATE ROLE future").await;
    shop.sql(
        "shop",
        "ALTER TABLE orders OWNER TO \"Odd owner\"; GRANT SELECT ON customers TO reader; \
         ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO future",
    )
    .await;
    let record = backup(&shop.repository, &shop.server.url("shop")).await;
    let other = server();
    let into = |options: LoadOptions| Load::into(other.conninfo("copy").unwrap()).options(options);
    let error = restore(&shop.repository, &record, into(LoadOptions::default())).await.unwrap_err();
    let said = error.to_string();
    for word in ["Odd owner", "reader", "future", "--no-owner", "--no-acl"] {
        assert!(said.contains(word), "{word} is not in {said}");
    }
    assert!(
        support::sql(&other, "postgres", "SELECT 1 FROM pg_database WHERE datname = 'copy'").await.is_empty()
    );
    let without = options(|o| (o.no_owner, o.no_acl) = (true, true));
    restore(&shop.repository, &record, into(without)).await.unwrap();
    // A user who may not create databases.
    support::sql(&other, "postgres", "CREATE ROLE poor LOGIN").await;
    let text = format!("host={} user=poor dbname=another", other.folder().display());
    let options = options(|o| (o.no_owner, o.no_acl, o.role) = (true, true, Some("nobody".to_owned())));
    let error =
        restore(&shop.repository, &record, Load::into(conninfo(&text)).options(options)).await.unwrap_err();
    let said = error.to_string();
    assert!(said.contains("CREATEDB") && said.contains("role nobody is missing"), "{said}");
}

/// An extension that does of `TimescaleDB` what a restore meets: its catalog takes rows only while it knows that it is
/// restored.
const TIMESCALE: &str = r#"
cd "$(dirname "$(find /usr -name plpgsql.control)")"
printf "default_version = '2.17.0'\nrelocatable = false\n" >timescaledb.control
cat >timescaledb--2.17.0.sql <<'S'
CREATE TABLE hypertable (name text);
SELECT pg_catalog.pg_extension_config_dump('hypertable', '');
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
IF current_setting('timescaledb.restoring', true) IS DISTINCT FROM 'on' THEN RAISE 'not while it works'; END IF;
RETURN NEW; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON hypertable FOR EACH ROW EXECUTE FUNCTION refuse();
CREATE FUNCTION timescaledb_pre_restore() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN
EXECUTE format('ALTER DATABASE %I SET timescaledb.restoring = ''on''', current_database()); RETURN true; END $$;
CREATE FUNCTION timescaledb_post_restore() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN
EXECUTE format('ALTER DATABASE %I RESET timescaledb.restoring', current_database());
EXECUTE format('COMMENT ON DATABASE %I IS ''restored''', current_database()); RETURN true; END $$;
S
"#;

#[tokio::test(flavor = "multi_thread")]
async fn timescaledb_is_told_that_it_is_restored() {
    if left_out("docker") {
        return;
    }
    let container = containers::start(17).await;
    container.script(TIMESCALE);
    let session = async |name: &str| connect(&container.url(name)).await;
    session("postgres").await.rows("CREATE DATABASE shop").await.unwrap();
    let source = session("shop").await;
    for text in [
        "CREATE EXTENSION timescaledb; CREATE TABLE metrics AS SELECT generate_series(1, 1000) AS n",
        "SET timescaledb.restoring = 'on'; INSERT INTO hypertable VALUES ('metrics')",
    ] {
        source.rows(text).await.unwrap();
    }
    let tools = || pgark::postgres::Tools::in_folder(containers::tools(17));
    let (repository, _) = memory_repository().await;
    let dump = Dump::new(conninfo(&container.url("shop"))).tools(tools());
    let backup = Backup::builder().repository(repository.clone()).dumper(dump).build().unwrap();
    let summary = backup.run(&CancellationToken::new()).await.unwrap();
    let record = repository.record(&ClusterName::default(), &summary.backup.id).await.unwrap();
    restore(&repository, &record, Load::into(conninfo(&container.url("copy"))).tools(tools())).await.unwrap();
    let facts = "SELECT (SELECT string_agg(name, ',') FROM hypertable), (SELECT sum(n) FROM metrics), \
                 (SELECT count(*) FROM pg_db_role_setting), shobj_description(oid, 'pg_database') \
                 FROM pg_database WHERE datname = 'copy'";
    let facts = session("copy").await.rows(facts).await.unwrap().remove(0);
    let facts: Vec<&str> = facts.iter().map(|fact| fact.as_deref().unwrap()).collect();
    assert_eq!(facts, ["metrics", "500500", "0", "restored"]);
}

/// Tables whose statistics are no longer true, and some that have none.
const ANALYZED: &str = r#"
    CREATE SCHEMA "Säle";
    CREATE TABLE "Säle"."große ""Zahlen""" (n int, "Näme" text, at timestamptz) WITH (autovacuum_enabled = off);
    INSERT INTO "Säle"."große ""Zahlen""" SELECT i, E'a\\b''' || i % 7, '2026-01-01'::timestamptz + i * interval '1 hour' FROM generate_series(1, 10000) i;
    CREATE INDEX upper ON "Säle"."große ""Zahlen""" (upper("Näme"));
    CREATE TABLE parted (id int, at date) PARTITION BY RANGE (at);
    CREATE TABLE parted_a PARTITION OF parted FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') WITH (autovacuum_enabled = off);
    INSERT INTO parted SELECT i, date '2026-01-01' + i % 300 FROM generate_series(1, 900) i;
    CREATE MATERIALIZED VIEW sums WITH (autovacuum_enabled = off) AS SELECT at, sum(id) FROM parted GROUP BY 1;
    CREATE TABLE pairs (a int, b int) WITH (autovacuum_enabled = off);
    INSERT INTO pairs SELECT i % 10, i % 10 FROM generate_series(1, 1000) i;
    CREATE STATISTICS of_pairs ON a, b FROM pairs;
    ANALYZE;
    CREATE TABLE never (n int) WITH (autovacuum_enabled = off);
    INSERT INTO never SELECT generate_series(1, 100);
    DELETE FROM "Säle"."große ""Zahlen""" WHERE n > 100;
    DELETE FROM parted WHERE id > 300;
"#;

/// What the planner knows of the columns.
const KNOWN: &str = "SELECT schemaname, tablename, attname, inherited, null_frac, avg_width, n_distinct, most_common_vals::text, \
    most_common_freqs::text, histogram_bounds::text, correlation FROM pg_stats \
    WHERE schemaname IN ('public', 'Säle') AND tablename NOT IN ('pairs', 'never') ORDER BY 1, 2, 3, 4";
/// Tables that a restore analyzed.
const GATHERED: &str = "SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_stat_user_tables WHERE last_analyze IS NOT NULL";

/// From 18 on statistics come with the backup; those of older servers, and what a dump does not hold, are gathered.
async fn statistics(major: u32) {
    if left_out("docker") {
        return;
    }
    let container = containers::start(major).await;
    let session = async |name: &str| connect(&container.url(name)).await;
    for text in [ANALYZED, "CREATE DATABASE beside"] {
        session("postgres").await.rows(text).await.unwrap();
    }
    let tools = || pgark::postgres::Tools::in_folder(containers::tools(18));
    let (repository, _) = memory_repository().await;
    let back_up = async |selection: Selection| {
        let dump = Dump::new(conninfo(&container.url("postgres"))).tools(tools()).selection(selection);
        let backup = Backup::builder().repository(repository.clone()).dumper(dump).build().unwrap();
        let summary = backup.run(&CancellationToken::new()).await.unwrap();
        repository.record(&ClusterName::default(), &summary.backup.id).await.unwrap()
    };
    let restored = async |record: &BackupRecord, name: &str, options: LoadOptions| {
        let load = Load::into(conninfo(&container.url(name))).tools(tools()).options(options);
        restore(&repository, record, load).await.unwrap();
        let copy = session(name).await;
        (copy.rows(KNOWN).await.unwrap(), copy.value(GATHERED).await.unwrap().unwrap_or_default())
    };
    let record = back_up(Selection::default()).await;
    let before = session("postgres").await.rows(KNOWN).await.unwrap();
    assert!(before.iter().any(|row| row[1].as_deref() == Some("upper")) && before.len() > 8, "{before:?}");
    let all = r#"große "Zahlen",never,pairs,parted,parted_a,sums"#;

    let (known, gathered) = restored(&record, "copy", LoadOptions::default()).await;
    let (some_known, some_gathered) = restored(&record, "some", tables(&["public.parted"])).await;
    if major < 18 {
        assert_ne!(known, before);
        assert_eq!((gathered.as_str(), some_gathered.as_str()), (all, "parted,parted_a"));
    } else {
        assert_eq!(known, before);
        assert_eq!((gathered.as_str(), some_gathered.as_str()), ("never,pairs", ""));
        let is_parted =
            |row: &&Vec<Option<String>>| row[1].as_deref().is_some_and(|table| table.starts_with("parted"));
        assert_eq!(some_known, before.iter().filter(is_parted).cloned().collect::<Vec<_>>());
    }
    let pairs = "SELECT dependencies IS NOT NULL FROM pg_stats_ext WHERE statistics_name = 'of_pairs'";
    assert_eq!(session("copy").await.value(pairs).await.unwrap().as_deref(), Some("t"));
    let none = restored(&record, "none", options(|o| o.no_analyze = true)).await;
    assert_eq!(none, (Vec::new(), String::new()));
    // Beside what is there, names are others.
    session("beside").await.rows("CREATE TABLE there (n int)").await.unwrap();
    let renamed = options(|o| o.rename_schemas = vec![("Säle".to_owned(), "other".to_owned())]);
    assert_eq!(restored(&record, "beside", renamed).await.1, r#"große "Zahlen""#);
    // Values of rows that are left out are not in statistics either.
    let mut without = Selection::default();
    without.exclude_table_data = vec!["public.pairs".to_owned()];
    assert_eq!(restored(&back_up(without).await, "without", LoadOptions::default()).await.1, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_come_with_the_backup() {
    statistics(18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_of_an_older_server_are_gathered() {
    statistics(17).await;
}

async fn in_container(major: u32) {
    if left_out("docker") {
        return;
    }
    let container = containers::start(major).await;
    connect(&container.url("postgres")).await.rows("CREATE DATABASE shop").await.unwrap();
    connect(&container.url("shop")).await.rows(SHOP).await.unwrap();
    let tools = || pgark::postgres::Tools::in_folder(containers::tools(major));
    let (repository, _) = memory_repository().await;
    let dump = Dump::new(conninfo(&container.url("shop"))).tools(tools());
    let summary = Backup::builder()
        .repository(repository.clone())
        .dumper(dump)
        .build()
        .unwrap()
        .run(&CancellationToken::new())
        .await
        .unwrap();
    let record = repository.record(&ClusterName::default(), &summary.backup.id).await.unwrap();
    let into = |name: &str| Load::into(conninfo(&container.url(name))).tools(tools());
    let before = fingerprint(&connect(&container.url("shop")).await).await;
    let whole = connect(&container.url("shop")).await.value(BELONGINGS).await.unwrap().unwrap();

    restore(&repository, &record, into("some").options(tables(&["public.orders"]))).await.unwrap();
    let some = connect(&container.url("some")).await.value(BELONGINGS).await.unwrap().unwrap();
    assert_eq!(some, whole.replace("constraint orders_customer_fkey; ", ""));
    let odd = options(|o| o.schemas = vec!["Odd shop".to_owned()]);
    restore(&repository, &record, into("odd").options(odd)).await.unwrap();

    connect(&container.url("shop")).await.rows("DROP TABLE customers CASCADE").await.unwrap();
    let swap = into("shop").existing(Existing::Swap { drop_old: true }).end_sessions(true);
    restore(&repository, &record, swap).await.unwrap();
    assert_eq!(fingerprint(&connect(&container.url("shop")).await).await, before);

    connect(&container.url("shop")).await.rows("TRUNCATE customers CASCADE; TRUNCATE \"Odd shop\".parted; SELECT lo_unlink(4711); ALTER TABLE orders DISABLE TRIGGER stamped").await.unwrap();
    restore(&repository, &record, into("shop").options(options(|o| o.data_only = true))).await.unwrap();
    assert_eq!(fingerprint(&connect(&container.url("shop")).await).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_17_in_a_container() {
    in_container(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_18_in_a_container() {
    in_container(18).await;
}
