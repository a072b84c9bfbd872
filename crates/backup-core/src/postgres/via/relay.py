import os, select, socket, sys
host, port = sys.argv[1:]
try:
    if host[0] in "/@":
        name = "%s/.s.PGSQL.%s" % (host, port)
        server = socket.socket(socket.AF_UNIX)
        server.connect("\0" + name[1:] if host[0] == "@" else name)
    else:
        server = socket.create_connection((host, int(port)))
        server.settimeout(None)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while True:
        ready = select.select([0, server], [], [])[0]
        if server in ready:
            data = server.recv(65536)
            if not data: break
            while data: data = data[os.write(1, data):]
        if 0 in ready:
            data = os.read(0, 65536)
            if not data: break
            server.sendall(data)
except OSError as error:
    sys.exit("%s port %s: %s" % (host, port, error.strerror or error))
