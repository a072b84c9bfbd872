# make demo   installs what is missing, builds, and shows a database backed up and restored
# make test   installs what is missing, and passes the tests
# make lint, make bench, make doc

.PHONY: demo test lint bench doc

demo:
	@scripts/setup demo
	cargo build --release --locked --quiet --package backup-cli
	@target/release/pgark demo

# Groups of tests that this machine cannot run are left out by name, and said so at the end.
test: export PGARK_TEST_WITHOUT := $(shell scripts/without)
test:
	@scripts/setup test
	cargo nextest run --locked --workspace
	cargo test --locked --workspace --doc --quiet
	@[ -z "$$PGARK_TEST_WITHOUT" ] || echo "left out by name, since this machine cannot run them: $$PGARK_TEST_WITHOUT"

lint:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --quiet -- --deny warnings
	command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny --log-level error --workspace check bans licenses sources

bench:
	@scripts/setup bench
	cargo bench --locked --package pgark

doc:
	RUSTDOCFLAGS="--deny warnings" cargo doc --locked --workspace --no-deps
