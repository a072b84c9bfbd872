use Socket qw(:all);
$SIG{PIPE} = "IGNORE";
my ($host, $port) = @ARGV;
my $server;
if ($host =~ m{^[/@]}) {
    my $path = "$host/.s.PGSQL.$port";
    my $name = $path;
    $name =~ s{^@}{\0};
    socket($server, PF_UNIX, SOCK_STREAM, 0) && connect($server, sockaddr_un($name)) or die "$path: $!\n";
} else {
    my ($error, @found) = getaddrinfo($host, $port, {socktype => SOCK_STREAM});
    die "$host: $error\n" if $error;
    my $why;
    for my $address (@found) {
        socket(my $try, $address->{family}, SOCK_STREAM, 0) or next;
        if (connect($try, $address->{addr})) { $server = $try; last }
        $why = $!;
    }
    $server or die "$host port $port: $why\n";
    setsockopt($server, IPPROTO_TCP, TCP_NODELAY, 1);
}
sub pass {
    my ($from, $to) = @_;
    my $read = sysread($from, my $data, 65536) or exit;
    for (my $done = 0; $done < $read;) {
        my $wrote = syswrite($to, $data, $read - $done, $done);
        defined $wrote or exit;
        $done += $wrote;
    }
}
while (1) {
    my $ready = "";
    vec($ready, 0, 1) = 1;
    vec($ready, fileno($server), 1) = 1;
    next if select($ready, undef, undef, undef) < 1;
    pass($server, *STDOUT) if vec($ready, fileno($server), 1);
    pass(*STDIN, $server) if vec($ready, 0, 1);
}
