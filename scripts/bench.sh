#!/usr/bin/env bash
# Measures the worker beside a bare loop, A B A B in one run, and prints a table with ratios. Everything runs on loopback
# in a temporary directory and is ended by process number, whatever happens.
#
#   scripts/bench.sh                            every row, some 15 minutes
#   scripts/bench.sh echo http latency          these rows: see --help
#   scripts/bench.sh --rounds 3 --seconds 2     shorter
#   scripts/bench.sh --long                     also 10 minutes of full load, and 1,000,000 tasks
#   scripts/bench.sh --markdown >BENCHMARKS.md  with machine, versions and command
#   scripts/bench.sh --help                     all rows and options
#
# CAF_WORKER_BIN names the worker, CAF_BENCH_BIN the load generator (else both are built), NATS_SERVER_BIN the broker.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/measuring.sh
source "$(dirname "${BASH_SOURCE[0]}")/measuring.sh"

# What a reader must know to judge the figures.
heading() {
    local processor memory
    processor="$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"
    memory="$(awk '/^MemTotal:/ { printf "%.0f", $2 / 1048576 }' /proc/meminfo)"
    cat <<EOF
# Benchmarks

Written by \`scripts/bench.sh $*\`; not edited by hand. The worker beside a bare loop: the smallest honest durable worker that
one can write with async-nats (\`benches/src/bare.rs\`). Both in turn beside the same broker, A B A B; figures are medians of all
rounds, ratios the median of the rounds' ratios. Absolute figures say more of the machine than of the worker.

- Date: $(date -u +%Y-%m-%d)
- Machine: $(nproc) processors (${processor:-unknown}), $memory GiB, $(uname -sr)
- Load average before: $(cut -d ' ' -f 1-3 /proc/loadavg)
- Broker: $("$NATS_SERVER_BIN" --version)
- Worker: $("$CAF_WORKER_BIN" --version | head -n 1), commit $(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)
- Compiler: $(rustc --version 2>/dev/null || echo unknown)

Settings of the worker, where the row does not say otherwise: jetstream, file storage, \`idempotency.scope\` worker, every flag of
\`config/production.toml\` but tracing, \`queue.admission\` wait, metrics on, info log to a file, \`outbox.sync\` interval.

EOF
}

for word in "$@"; do
    [[ "$word" != --markdown ]] || heading "$@"
done
exec "$CAF_BENCH_BIN" compare --worker "$CAF_WORKER_BIN" --broker "$NATS_SERVER_BIN" --root "$root" "$@"
