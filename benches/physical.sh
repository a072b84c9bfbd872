#!/bin/bash
# Times physical backups beside pg_basebackup and pgBackRest, all of the server that PGHOST and PGPORT name:
#   benches/physical.sh PGARK DATA [ROUNDS]
# DATA is the server's data directory, which pgBackRest reads. The server has a database `bench` with what `pgbench -i`
# makes; between the full backups and the increments it is changed, by pgbench and by the SQL in CHANGE, where ROUND is the
# round's number. All work below TMPDIR, with zstd level 3 and two processes; pgark encrypts, the others do not. Each line:
# seconds, seconds of CPU of the tool, its largest process in MB, MB stored. The tools take turns; medians and ratios to
# the peers follow. Run it as the server's user.
set -euo pipefail
[ $# -ge 2 ] || { sed -n 2,8p "$0" >&2; exit 64; }
pgark=$(realpath "$1") data=$2 rounds=${3:-5}
out=$(mktemp -d "${TMPDIR:-/tmp}/pgark-bench.XXXXXX")
trap 'rm -rf "$out"' EXIT
host=${PGHOST:-/var/run/postgresql} port=${PGPORT:-5432} user=${PGUSER:-postgres}

"$pgark" key generate --output "$out/key" >"$out/recipient"
cat >"$out/pgark.toml" <<C
[encryption]
recipients = ["$(grep -o 'age1[0-9a-z]*' "$out/recipient")"]
identity_file = "$out/key"
C
db="host=$host port=$port user=$user dbname=postgres"
cat >"$out/pgbackrest.conf" <<C
[global]
repo1-path=$out/r/pgbackrest
process-max=2
compress-type=zst
start-fast=y
repo1-bundle=y
repo1-block=y
log-level-console=warn
log-path=$out
lock-path=$out/lock
spool-path=$out/spool
[b]
pg1-path=$data
pg1-port=$port
pg1-socket-path=$host
C
export PGBACKREST_CONFIG=$out/pgbackrest.conf

stored() { du -sm "$out/r" | cut -f1; }
timed() { # name, command
  local name=$1 before
  shift
  before=$(stored)
  sync
  /usr/bin/time -o "$out/time" -f '%e %U %S %M' bash -c "$*" >"$out/said" 2>&1 || { tail -n 5 "$out/said" >&2; exit 1; }
  awk -v name="$name" -v mb=$(($(stored) - before)) \
    '{ printf "%.2f s, CPU %.2f, %.0f MB, stored %d MB: %s\n", $1, $2 + $3, $4 / 1024, mb, name }' "$out/time" |
    tee -a "$out/times.$name"
}
own="$pgark --config $out/pgark.toml --quiet --repo $out/r/pgark"
full_pgark() { timed full.pgark "$own --state $out/r/state backup --physical --jobs 2 --db '$db'"; }
full_pgbackrest() { timed full.pgbackrest "pgbackrest --stanza=b backup --type=full --no-archive-check"; }
full_pg_basebackup() { timed full.pg_basebackup "pg_basebackup -Ft -X none -c fast -D $out/r/full --compress=client-zstd:level=3,workers=2"; }
for round in $(seq "$rounds"); do
  rm -rf "$out/r"
  mkdir -p "$out/r/pgbackrest"
  $own init
  pgbackrest --stanza=b stanza-create
  tools=(full_pgark full_pgbackrest full_pg_basebackup)
  for n in 0 1 2; do "${tools[$(((round + n) % 3))]}"; done
  pgbench -n -c 2 -t 1000 -b tpcb-like bench >/dev/null 2>&1
  [ -z "${CHANGE:-}" ] || psql -d bench -qc "${CHANGE//ROUND/$round}"
  psql -d bench -qc checkpoint
  full=$("$pgark" --config "$out/pgark.toml" --json --repo "$out/r/pgark" list | grep -o '"id": *"[^"]*"' | cut -d'"' -f4 | sort | head -n 1)
  tools=("timed increment.pgark '$own --state $out/r/state backup --incremental --jobs 2 --db \"$db\"'"
    "timed increment.pgbackrest 'pgbackrest --stanza=b backup --type=incr --no-archive-check'"
    "timed increment.pg_basebackup 'pg_basebackup -Ft -X none -c fast -D $out/r/increment --incremental=$out/r/full/backup_manifest --compress=client-zstd:level=3,workers=2'"
    "timed server-made.pgark '$own --state $out/r/state backup --incremental --server-summaries --from $full --jobs 2 --db \"$db\"'")
  for n in 0 1 2 3; do eval "${tools[$(((round + n) % 4))]}"; done
  tools=("timed restore.pgark '$own restore $full --target-dir $out/restored --to-backup-end'"
    "timed restore.pgbackrest 'mkdir -m 700 $out/restored; pgbackrest --stanza=b restore --pg1-path=$out/restored'")
  for n in 0 1; do eval "${tools[$(((round + n) % 2))]}"; rm -rf "$out/restored"; done
done
median() { sort -n "$1" | awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'; }
beside() {
  awk -v own="$(median "$out/times.$1")" -v peer="$(median "$out/times.$2")" -v what="$1 beside $2" \
    'BEGIN { printf "%s: %.2f s, %.2f s: %.2f of it\n", what, own, peer, own / peer }'
}
beside full.pgark full.pgbackrest
beside full.pgark full.pg_basebackup
beside increment.pgark increment.pgbackrest
beside server-made.pgark increment.pg_basebackup
beside restore.pgark restore.pgbackrest
