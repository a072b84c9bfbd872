#!/bin/bash
# Times pushing and fetching WAL one segment after the other, as a server does, beside pgBackRest:
#   PGHOST=... PGPORT=... benches/wal.sh PGARK DATA_DIRECTORY [ROUNDS]
# DATA_DIRECTORY is that of the running server, whose oldest 32 finished segments are copied first. The tools take turns within
# each round; medians of the rounds follow. Needs pgbackrest and GNU time, and to run as the server's user.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 2 ] || { sed -n 2,5p "$0" >&2; exit 64; }
pgark=$1 data=$2 rounds=${3:-5}
out=$(mktemp -d "${TMPDIR:-/tmp}/pgark-bench.XXXXXX")
trap 'rm -rf "$out"' EXIT

# A data directory with nothing but the segments: a checkpoint of the server must not take them away.
mkdir -p -m 700 "$out/data/pg_wal" "$out/data/global" "$out/to"
current=$(psql -AtXc 'SELECT pg_walfile_name(pg_current_wal_lsn())' postgres)
find "$data/pg_wal" -maxdepth 1 -type f -printf '%f\n' | grep -E '^[0-9A-F]{24}$' | sort | awk -v c="$current" '$1 < c' | head -32 >"$out/segments"
[ "$(wc -l <"$out/segments")" = 32 ] || { echo "the server has fewer than 32 finished segments; write some WAL first" >&2; exit 1; }
while read -r name; do cp "$data/pg_wal/$name" "$out/data/pg_wal/"; done <"$out/segments"
cp "$data/global/pg_control" "$out/data/global/"
cp "$data/PG_VERSION" "$out/data/"

export out pgark PGBACKREST_CONFIG=$out/pgbackrest.conf
cat >"$PGBACKREST_CONFIG" <<C
[global]
repo1-path=$out/pgbackrest
process-max=2
compress-type=zst
log-level-console=warn
log-path=$out
lock-path=$out/lock
spool-path=$out/spool
[b]
pg1-path=$data
pg1-port=${PGPORT:-5432}
pg1-socket-path=${PGHOST:-/var/run/postgresql}
C
. "$here/settings.sh"

names=("pgark wal push, age" "pgbackrest archive-push, zst none" "pgark wal fetch, age" "pgbackrest archive-get, zst none")
commands=(
  'while read -r s; do "$pgark" --config "$out/pgark.toml" wal push "pg_wal/$s" || exit 1; done'
  'while read -r s; do pgbackrest --stanza=b --pg1-path="$out/data" archive-push "pg_wal/$s" || exit 1; done'
  'while read -r s; do "$pgark" --config "$out/pgark.toml" wal fetch "$s" "$out/to/$s" || exit 1; done'
  'while read -r s; do pgbackrest --stanza=b --pg1-path="$out/data" archive-get "$s" "$out/to/$s" || exit 1; done'
)
cd "$out/data"
for ((round = 1; round <= rounds; round++)); do
  rm -rf "$out/repo" "$out/pgbackrest" "$out/state"
  mkdir "$out/pgbackrest"
  pgbackrest --stanza=b stanza-create
  "$pgark" --config "$out/pgark.toml" --quiet init
  for i in "${!names[@]}"; do
    rm -rf "$out/to"
    mkdir "$out/to"
    sync
    command time -o "$out/time" -f '%e %U %S %M' bash -c "${commands[i]}" <"$out/segments" >/dev/null
    stored=pgbackrest
    [ $((i % 2)) = 1 ] || stored=repo
    echo "$i $(tail -1 "$out/time") $(du -sm "$out/$stored" | cut -f1)" >>"$out/rows"
    [ "$i" -lt 2 ] || while read -r name; do cmp "pg_wal/$name" "$out/to/$name"; done <"$out/segments"
  done
done
median() { awk -v i="$1" -v f="$2" '$1 == i { print $f }' "$out/rows" | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
printf '%-36s %8s %8s %8s %8s %10s %8s\n' "medians of $rounds" wall user system MiB "MB stored" "pgark/it"
for i in "${!names[@]}"; do
  wall=$(median "$i" 2)
  own=$(median $((i / 2 * 2)) 2)
  printf '%-36s %8s %8s %8s %8s %10s %8s\n' "${names[i]}" "$wall" "$(median "$i" 3)" "$(median "$i" 4)" \
    "$(($(median "$i" 5) / 1024))" "$(median "$i" 6)" "$(awk -v a="$own" -v b="$wall" 'BEGIN { printf "%.2f", a / b }')"
done
