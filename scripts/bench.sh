#!/usr/bin/env bash
# Measures the worker beside a bare loop, A B A B in one run, and prints a table with ratios. Everything runs on loopback
# in a temporary directory and is ended by process number, whatever happens.
#
#   scripts/bench.sh                          every row
#   scripts/bench.sh echo http latency        these rows: see --help
#   scripts/bench.sh --rounds 3 --seconds 2   shorter
#   scripts/bench.sh --help                   all rows and options
#
# CAF_WORKER_BIN names a worker to measure in place of the one that is built; NATS_SERVER_BIN the broker.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

cargo build --quiet --release -p caf-bench
target="$(cargo metadata --format-version 1 --no-deps | grep -oE '"target_directory":"[^"]*"' | cut -d '"' -f 4)"
if [[ -z "${CAF_WORKER_BIN:-}" ]]; then
    cargo build --quiet --release --bin caf-worker
    CAF_WORKER_BIN="$target/release/caf-worker"
fi
find_nats_server >/dev/null || scripts/install-test-tools.sh --only nats-server
exec "$target/release/caf-bench" compare --worker "$CAF_WORKER_BIN" --broker "$(find_nats_server)" --root "$root" "$@"
