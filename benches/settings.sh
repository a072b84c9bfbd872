# Sourced by the benchmarks: a key, and a configuration with age of the repository "$out/repo".
"$pgark" key generate --output "$out/key" >"$out/recipient"
cat >"$out/pgark.toml" <<C
[repository]
url = "$out/repo"
[encryption]
recipients = ["$(grep -o 'age1[0-9a-z]*' "$out/recipient")"]
identity_file = "$out/key"
[host]
state = "$out/state"
C
