#!/bin/bash
# Times backups and restores beside what scripts do, on a database of your own:
#   PGHOST=... benches/dump.sh PGARK DATABASE [ROUNDS]
# The tools take turns within each round; medians of the rounds follow. Needs pg_dump 16 or later, gzip, openssl, GNU time,
# and room for a copy of the database, pgark_bench, which is dropped afterwards. Memory is that of the largest process.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 2 ] || { sed -n 2,5p "$0" >&2; exit 64; }
pgark=$1 database=$2 rounds=${3:-5}
out=$(mktemp -d "${TMPDIR:-/tmp}/pgark-bench.XXXXXX")
trap 'rm -rf "$out"; dropdb --if-exists pgark_bench 2>/dev/null' EXIT
export out database pgark
. "$here/settings.sh"

names=("pgark backup, zstd 3, age, two jobs" "pg_dump -Fd -j2 -Z zstd:3" "pg_dump -Fc | gzip | openssl" "pgark restore, two jobs" "pg_restore -j2")
commands=(
  '"$pgark" --config "$out/pgark.toml" backup --quiet --db "dbname=$database" --jobs 2'
  'pg_dump -Fd -j2 -Z zstd:3 -f "$out/folder" "$database"'
  'pg_dump -Fc "$database" | gzip | openssl enc -aes-256-cbc -salt -pbkdf2 -pass pass:x >"$out/file"'
  '"$pgark" --config "$out/pgark.toml" restore --quiet --into dbname=pgark_bench --jobs 2 --yes'
  'pg_restore -j2 -d pgark_bench "$out/folder"'
)
stored=(repo folder file repo folder)
run() {
  sync
  command time -o "$out/time" -f '%e %U %S %M' bash -o pipefail -c "${commands[$1]}" >/dev/null
  echo "$1 $(tail -1 "$out/time") $(du -sm "$out/${stored[$1]}" | cut -f1)" >>"$out/rows"
}
for ((round = 1; round <= rounds; round++)); do
  rm -rf "$out/repo" "$out/folder"
  "$pgark" --config "$out/pgark.toml" --quiet init
  for i in 0 1 2; do run $i; done
  rm "$out/file"
done
for ((round = 1; round <= rounds; round++)); do
  for i in 3 4; do
    dropdb --if-exists pgark_bench
    createdb pgark_bench
    psql -qXc CHECKPOINT postgres
    run $i
  done
done
median() { awk -v i="$1" -v f="$2" '$1 == i { print $f }' "$out/rows" | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
printf '%-38s %8s %8s %8s %8s %10s %8s\n' "medians of $rounds" wall user system MiB "MB stored" "pgark/it"
for i in "${!names[@]}"; do
  wall=$(median "$i" 2)
  base=$(median $((i < 3 ? 0 : 3)) 2)
  printf '%-38s %8s %8s %8s %8s %10s %8s\n' "${names[i]}" "$wall" "$(median "$i" 3)" "$(median "$i" 4)" \
    "$(($(median "$i" 5) / 1024))" "$(median "$i" 6)" "$(awk -v a="$base" -v b="$wall" 'BEGIN { printf "%.2f", a / b }')"
done
