exec 3<&0
"$@" 3<&- </dev/null & tool=$!
(while read -r _; do :; done; kill "$tool") <&3 >/dev/null 2>&1 & watch=$!
exec 3<&-
wait "$tool"
status=$?
kill "$watch" 2>/dev/null
wait "$watch" 2>/dev/null
exit "$status"
