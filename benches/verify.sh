#!/bin/bash
# Times verify --stored beside b3sum, on a repository in a local folder:
#   benches/verify.sh PGARK REPOSITORY BACKUP [ROUNDS]
# b3sum reads the objects of the same backup, one after another on one thread. The files are read once before, so that both
# find them in the page cache. The tools take turns within each round; medians of the rounds follow. Needs b3sum and GNU time.
set -euo pipefail
[ $# -ge 3 ] || { sed -n 2,5p "$0" >&2; exit 64; }
pgark=$1 repo=$2 backup=$3 rounds=${4:-5}
out=$(mktemp -d "${TMPDIR:-/tmp}/pgark-bench.XXXXXX")
trap 'rm -rf "$out"' EXIT
folder=$(echo "$repo"/clusters/*/backups/"$backup")
find "$folder" -type f | sort >"$out/files"
xargs cat <"$out/files" >/dev/null
export out pgark repo backup PGARK_STATE=$out/state
names=("pgark verify --stored" "b3sum --num-threads 1")
commands=(
  '"$pgark" verify --quiet --stored --repo "$repo" "$backup"'
  'while read -r file; do b3sum --num-threads 1 "$file"; done <"$out/files"'
)
for ((round = 1; round <= rounds; round++)); do
  for i in "${!names[@]}"; do
    command time -o "$out/time" -f '%e %U %S %M' bash -c "${commands[i]}" >/dev/null
    echo "$i $(tail -1 "$out/time")" >>"$out/rows"
  done
done
median() { awk -v i="$1" -v f="$2" '$1 == i { print $f }' "$out/rows" | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
base=$(median 1 2)
echo "$(du -sm "$folder" | cut -f1) MB"
printf '%-24s %8s %8s %8s %8s %12s\n' "medians of $rounds" wall user system MiB "wall/b3sum"
for i in "${!names[@]}"; do
  wall=$(median "$i" 2)
  printf '%-24s %8s %8s %8s %8s %12s\n' "${names[i]}" "$wall" "$(median "$i" 3)" "$(median "$i" 4)" \
    "$(($(median "$i" 5) / 1024))" "$(awk -v a="$wall" -v b="$base" 'BEGIN { printf "%.2f", a / b }')"
done
