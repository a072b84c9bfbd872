exec 3<>"/dev/tcp/$1/$2" 4<&0 || exit 1
cat <&4 >&3 4<&- & up=$!
cat <&3 3<&- 4<&- & down=$!
wait -n
kill $up $down 2>/dev/null
wait 2>/dev/null
