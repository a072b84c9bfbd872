#!/bin/bash
# Times a drill of a physical backup beside what a person would do by hand: restore, start of the server, pg_amcheck.
#   benches/drill.sh PGARK BIN [ROUNDS]
# The backup is of the server that PGHOST and PGPORT name, which is left as it is. BIN is the folder of the programs of its
# version. A drill also stops the server, reads every page, and removes everything. Both work below TMPDIR, which needs
# the room of two such clusters; run it as a user that PostgreSQL runs as. The two take turns; medians follow.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 2 ] || { sed -n 2,6p "$0" >&2; exit 64; }
pgark=$(realpath "$1") bin=$2 rounds=${3:-5}
out=$(mktemp -d "${TMPDIR:-/tmp}/pgark-bench.XXXXXX")
finish() {
  [ ! -e "$out/data/postmaster.pid" ] || "$bin/pg_ctl" -D "$out/data" -m immediate stop >/dev/null || true
  rm -rf "$out"
}
trap finish EXIT

. "$here/settings.sh"
pgark() { "$pgark" --config "$out/pgark.toml" "$@"; }
pgark --quiet init
pgark --quiet backup --physical --db "host=${PGHOST:-/var/run/postgresql} port=${PGPORT:-5432} user=${PGUSER:-postgres} dbname=postgres"

by_hand() {
  local at=("$EPOCHREALTIME")
  pgark --quiet restore --target-dir "$out/data" --to-backup-end
  at+=("$EPOCHREALTIME")
  "$bin/pg_ctl" -D "$out/data" -l "$out/log" -w start \
    -o "-c port=5599 -c listen_addresses= -c unix_socket_directories='$out'" >/dev/null
  until [ "$(psql -h "$out" -p 5599 -d postgres -AtXc 'SELECT pg_is_in_recovery()')" = f ]; do sleep 0.1; done
  at+=("$EPOCHREALTIME")
  "$bin/pg_amcheck" -h "$out" -p 5599 --all --install-missing -j 2 2>"$out/said" || { cat "$out/said" >&2; exit 1; }
  at+=("$EPOCHREALTIME")
  echo "${at[@]}" | awk '{ printf "%.2f by hand: restore %.2f, start %.2f, pg_amcheck %.2f\n", $4-$1, $2-$1, $3-$2, $4-$3 }'
  "$bin/pg_ctl" -D "$out/data" -m immediate -w stop >/dev/null
  rm -rf "$out/data"
}
drill() {
  local from=$EPOCHREALTIME
  pgark --json drill --jobs 2 --to-backup-end --work-dir "$out" --pg-bin "$bin" >"$out/report" 2>"$out/said" ||
    { cat "$out/said" >&2; exit 1; }
  local phases
  phases=$(tr -d ' \n' <"$out/report" | grep -o '"outcome":"passed","seconds":[0-9.]*,"step":"[a-z]*"' |
    sed 's/.*:\([0-9.]*\),.*:"\([a-z]*\)"/\2 \1/' | awk '{ printf "%s %.2f, ", $1, $2 }')
  echo "$from $EPOCHREALTIME" | awk -v phases="${phases%, }" '{ printf "%.2f drill: %s\n", $2-$1, phases }'
}
median() { sort -n "$1" | awk '{ v[NR] = $1 } END { printf "%.2f", NR % 2 ? v[(NR+1)/2] : (v[NR/2] + v[NR/2+1]) / 2 }'; }
for round in $(seq "$rounds"); do
  sync
  if [ $((round % 2)) = 1 ]; then order="by_hand drill"; else order="drill by_hand"; fi
  for what in $order; do
    $what | tee -a "$out/$what.times"
    sync
  done
done
echo "medians: by hand $(median "$out/by_hand.times") s, drill $(median "$out/drill.times") s"
paste <(cut -d' ' -f1 "$out/by_hand.times") <(cut -d' ' -f1 "$out/drill.times") |
  awk '{ printf "%.2f\n", $2 / $1 }' >"$out/ratios"
echo "ratio of each round: $(tr '\n' ' ' <"$out/ratios"), median $(median "$out/ratios")"
