#!/bin/bash
# Times pgark beside what scripts do, on a database of your own:
#   PGHOST=... benches/dump.sh PGARK DATABASE [ROUNDS]
# The tools take turns within each round; medians of the rounds follow. Needs pg_dump 16 or later, gzip,
# openssl, and GNU time. Memory is that of the largest single process.
set -euo pipefail
[ $# -ge 2 ] || { sed -n 2,5p "$0" >&2; exit 64; }
pgark=$1 database=$2 rounds=${3:-5}
out=$(mktemp -d "${TMPDIR:-/tmp}/pgark-bench.XXXXXX")
trap 'rm -rf "$out"' EXIT
export out database pgark
"$pgark" key generate --output "$out/key" >"$out/recipient"
recipient=$(grep -o 'age1[0-9a-z]*' "$out/recipient")
export recipient

names=("pgark backup, zstd 3, age, two jobs" "pg_dump -Fc -Z zstd:3" "pg_dump -Fc | gzip | openssl")
commands=(
  '"$pgark" backup --quiet --recipient "$recipient" --repo "$out/store" --db "dbname=$database" --jobs 2'
  'pg_dump -Fc -Z zstd:3 "$database" >"$out/store"'
  'pg_dump -Fc "$database" | gzip | openssl enc -aes-256-cbc -salt -pbkdf2 -pass pass:x >"$out/store"'
)
for ((round = 1; round <= rounds; round++)); do
  for i in "${!names[@]}"; do
    sync
    command time -o "$out/time" -f '%e %U %S %M' bash -o pipefail -c "${commands[i]}" >/dev/null
    echo "$i $(tail -1 "$out/time") $(du -sm "$out/store" | cut -f1)" >>"$out/rows"
    rm -rf "$out/store"
  done
done
median() { awk -v i="$1" -v f="$2" '$1 == i { print $f }' "$out/rows" | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
base=$(median 0 2)
printf '%-38s %8s %8s %8s %8s %10s %8s\n' "medians of $rounds" wall user system MiB "MB stored" "pgark/it"
for i in "${!names[@]}"; do
  wall=$(median "$i" 2)
  printf '%-38s %8s %8s %8s %8s %10s %8s\n' "${names[i]}" "$wall" "$(median "$i" 3)" "$(median "$i" 4)" \
    "$(($(median "$i" 5) / 1024))" "$(median "$i" 6)" "$(awk -v a="$base" -v b="$wall" 'BEGIN { printf "%.2f", a / b }')"
done
