IFS=:
if [ "$folder" ]; then
    set -f
    set -- "$folder"
else
    set -- $folders $PATH
fi
for folder in "$@"; do
    if [ -f "$folder/$program" ] && [ -x "$folder/$program" ]; then
        printf '%s\t' "$folder/$program"
        "$folder/$program" --version </dev/null 2>/dev/null || echo
    fi
done
exit 0
