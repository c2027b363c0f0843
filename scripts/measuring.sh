# shellcheck shell=bash
# What bench.sh and load.sh share: the programs, built where they are not named. Sourced after lib.sh.

# built NAME PACKAGE: builds a program, and prints where it is.
built() {
    cargo build --quiet --release --manifest-path "$root/Cargo.toml" --package "$2" --bin "$1" >&2
    local target
    target="$(cargo metadata --manifest-path "$root/Cargo.toml" --format-version 1 --no-deps | grep -oE '"target_directory":"[^"]*"' | cut -d '"' -f 4)"
    printf '%s\n' "$target/release/$1"
}

CAF_BENCH_BIN="${CAF_BENCH_BIN:-$(built caf-bench caf-bench)}"
CAF_WORKER_BIN="${CAF_WORKER_BIN:-$(built caf-worker caf-worker)}"
find_nats_server >/dev/null || "$root/scripts/install-test-tools.sh" --only nats-server >&2
NATS_SERVER_BIN="$(find_nats_server)"
