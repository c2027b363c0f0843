#!/usr/bin/env bash
# LOAD-001 to LOAD-007 of the contract (9.1): prints what was expected, what was measured, pass or fail, and exits 1 when
# something failed. Everything runs on loopback in a temporary directory and is ended by process number.
#
#   scripts/load.sh                     all, a few seconds each
#   scripts/load.sh LOAD-001 LOAD-006   these
#   scripts/load.sh --full              durations and rates of the contract: some 12 minutes
#   scripts/load.sh --help              all options
#
# CAF_WORKER_BIN names the worker, CAF_BENCH_BIN the load generator (else both are built), NATS_SERVER_BIN the broker.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/measuring.sh
source "$(dirname "${BASH_SOURCE[0]}")/measuring.sh"

exec "$CAF_BENCH_BIN" load --worker "$CAF_WORKER_BIN" --broker "$NATS_SERVER_BIN" --root "$root" "$@"
