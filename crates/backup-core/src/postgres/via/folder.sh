umask 077
folder=$(mktemp -d "${TMPDIR:-/tmp}/pgark.XXXXXX") || exit 1
trap : HUP INT TERM
echo "$folder"
while read -r _; do :; done
rm -rf "$folder"
