#!/bin/bash
# Times recovering one table of 100 MB from a physical backup of about 2 GB, all of one database, beside doing it by hand:
#   benches/recover.sh PGARK BIN [ROUNDS]
# By hand: pgark restore of the whole cluster, a server started on it, pg_dump of the table. The recovered table is loaded
# into the live database as well; the dumped one is not. BIN is the folder of PostgreSQL's server programs. A cluster is
# made and removed below TMPDIR, which needs 8 GB; run it as a user that PostgreSQL runs as. The two take turns; medians follow.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 2 ] || { sed -n 2,6p "$0" >&2; exit 64; }
pgark=$(realpath "$1") bin=$2 rounds=${3:-3}
out=$(mktemp -d "${TMPDIR:-/tmp}/pgark-bench.XXXXXX")
finish() {
  for data in "$out/data" "$out/whole"; do
    [ ! -e "$data/postmaster.pid" ] || "$bin/pg_ctl" -D "$data" -m immediate stop >/dev/null || true
  done
  rm -rf "$out"
}
trap finish EXIT
export PGHOST=$out PGUSER=postgres PGDATABASE=shop PGOPTIONS='-c client_min_messages=warning'

"$bin/initdb" -D "$out/data" -U postgres -A trust --no-sync >/dev/null
cat >>"$out/data/postgresql.conf" <<C
listen_addresses = ''
unix_socket_directories = '$out'
fsync = off
max_wal_size = 512MB
C
"$bin/pg_ctl" -D "$out/data" -l "$out/log" -w start >/dev/null
psql -qXd postgres -c 'CREATE DATABASE shop'
fill="SELECT n AS id, md5(n::text) || md5((n * 7)::text) AS body, random() AS x FROM generate_series(1, 930000) n"
psql -qX -c "CREATE TABLE bookings AS $fill" -c 'ALTER TABLE bookings ADD PRIMARY KEY (id)'
psql -qX -c 'CREATE TABLE large AS SELECT * FROM bookings'
for _ in 1 2 3 4 5 6; do psql -qX -c 'INSERT INTO large SELECT id, body, random() FROM bookings'; done
for n in 1 2 3 4 5 6 7 8 9; do
  psql -qX -c "CREATE TABLE t$n AS SELECT id, body, random() AS x FROM bookings" -c "ALTER TABLE t$n ADD PRIMARY KEY (id)"
done
psql -qX -c 'VACUUM ANALYZE' -c CHECKPOINT
psql -AtX -c "SELECT 'cluster ' || pg_size_pretty(sum(pg_database_size(oid))) || ', table ' || pg_size_pretty(pg_relation_size('bookings')) FROM pg_database"

. "$here/settings.sh"
pgark() { "$pgark" --config "$out/pgark.toml" --quiet "$@"; }
pgark init
pgark backup --physical --db "host=$out user=postgres dbname=postgres"

by_hand() {
  pgark restore --target-dir "$out/whole" --to-backup-end
  "$bin/pg_ctl" -D "$out/whole" -l "$out/whole.log" -o "-c port=5433" -w start >/dev/null
  until [ "$(psql -AtXp 5433 -c 'SELECT pg_is_in_recovery()')" = f ]; do sleep 0.1; done
  "$bin/pg_dump" -p 5433 -Fc -t bookings -f "$out/dumped" shop
  "$bin/pg_ctl" -D "$out/whole" -m immediate -w stop >/dev/null
}
recover() {
  pgark recover --to-backup-end --table public.bookings --as back --into "host=$out user=postgres dbname=shop" --yes --work-dir "$out"
}
timed() { # name, file of times
  local begun
  begun=$(date +%s.%N)
  "$1"
  awk -v b="$begun" -v e="$(date +%s.%N)" 'BEGIN { printf "%.2f\n", e - b }' | tee -a "$out/times.$1"
}
for ((round = 1; round <= rounds; round++)); do
  for what in by_hand recover; do
    echo -n "$what: "
    timed "$what"
    rm -rf "$out/whole" "$out/dumped"
  done
  psql -AtX -c "SELECT CASE WHEN count(*) = 930000 THEN 'all rows are there' ELSE 'ROWS ARE MISSING' END FROM back JOIN bookings USING (id, body, x)"
  psql -qX -c 'DROP TABLE back' -c CHECKPOINT
done
median() { sort -n "$1" | awk '{ t[NR] = $1 } END { print t[int((NR + 1) / 2)] }'; }
awk -v h="$(median "$out/times.by_hand")" -v r="$(median "$out/times.recover")" \
  'BEGIN { printf "medians: by hand %.2f s, recover %.2f s: %.2f of it\n", h, r, r / h }'
