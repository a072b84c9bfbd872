if perl -MSocket=getaddrinfo -e 1 2>/dev/null; then exec perl -e "$perl" "$host" "$port"; fi
if python3 -c "import select, socket" 2>/dev/null; then exec python3 -c "$python" "$host" "$port"; fi
close=
case $(nc -h 2>&1) in *-N*) close=-N ;; esac
case $host in
/* | @*)
    path=$host/.s.PGSQL.$port
    if command -v socat >/dev/null; then exec socat - "UNIX-CONNECT:$path"; fi
    case $(nc -h 2>&1) in *-U*) exec nc $close -U "$path" ;; esac
    echo "nothing is there that can connect to a Unix socket: install perl, python3 or socat there, or give host=127.0.0.1" >&2
    exit 1
    ;;
esac
if command -v socat >/dev/null; then exec socat - "TCP:$host:$port,nodelay"; fi
if command -v nc >/dev/null; then exec nc $close "$host" "$port"; fi
if command -v bash >/dev/null; then exec bash -c "$bash" bash "$host" "$port"; fi
echo "nothing is there that can connect to a port: install perl, python3, socat, nc or bash there" >&2
exit 1
