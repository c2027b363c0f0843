#!/usr/bin/env bash
# Shows the node at work beside a broker: starts a nats-server with JetStream and a worker in a temporary directory,
# lets `submit` play the router, shows the health answer and the log, and leaves nothing behind.
# Installs nats-server when it is missing. Every server listens on a free port of this machine.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

directory="$(mktemp -d)"
broker_pid=""
worker_pid=""

# stop PID SIGNAL: ends one of our own processes and waits for it.
stop() {
    [[ -n "$1" ]] || return 0
    kill -s "$2" "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

clean_up() {
    local code=$?
    if [[ $code -ne 0 && -s "$directory/worker.log" ]]; then
        say "== the demo failed; the worker's last lines:"
        tail -n 30 "$directory/worker.log"
    fi
    stop "$worker_pid" KILL
    stop "$broker_pid" TERM
    rm -rf "$directory"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

is_ready() {
    kill -0 "$worker_pid" 2>/dev/null || die "the worker ended before it was ready"
    http_get "$health_port" /readyz >/dev/null 2>&1
}

broker_is_up() {
    kill -0 "$broker_pid" 2>/dev/null || die "nats-server ended: $(tail -n 5 "$directory/nats.log")"
    listens "$nats_port"
}

say "== building"
cargo build --manifest-path "$root/Cargo.toml" --bin caf-worker
target="$(cargo metadata --manifest-path "$root/Cargo.toml" --format-version 1 --no-deps | grep -oE '"target_directory":"[^"]*"' | cut -d '"' -f 4)"
worker="$target/debug/caf-worker"

if ! find_nats_server >/dev/null; then
    "$root/scripts/install-test-tools.sh" --only nats-server
fi
nats_server="$(find_nats_server)"
nats_port="$(free_port)"
health_port="$(free_port)"
export NATS_URL="nats://127.0.0.1:$nats_port"

say "== starting nats-server on port $nats_port"
"$nats_server" --addr 127.0.0.1 --port "$nats_port" --jetstream --store_dir "$directory/nats" \
    >"$directory/nats.log" 2>&1 &
broker_pid=$!
wait_until 30 broker_is_up || die "nats-server does not answer"

say "== starting a worker, health on port $health_port"
mkdir -p "$directory/data"
cd "$directory"
WORKER__HTTP__HEALTH_ADDR="127.0.0.1:$health_port" WORKER__HTTP__ADMIN_ADDR=127.0.0.1:0 "$worker" serve >"$directory/worker.log" 2>&1 &
worker_pid=$!
wait_until 30 is_ready || die "the worker did not become ready"

say "== submitting examples/demo.jsonl"
"$worker" submit "$root/examples/demo.jsonl" --timeout-s 60

say "== reading back, through standard input, the file that it wrote"
"$worker" submit - --timeout-s 60 <<'JSON'
{"version":"1","assignment_id":"demo-fs-get","request_id":"demo-request-get","tenant_id":"demo","executor":{"provider_id":"demo-provider","channel":"nats"},"job":{"type":"fs.blob_get","payload":{"path":"data/demo/greeting.txt"}}}
JSON

say "== GET /_health"
http_get "$health_port" /_health
say ""

say "== stopping the worker"
kill -s TERM "$worker_pid"
if wait "$worker_pid"; then
    say "the worker left in good order"
    worker_pid=""
else
    code=$?
    worker_pid=""
    die "the worker left with exit code $code"
fi

say "== the worker's last lines"
tail -n 12 "$directory/worker.log"
