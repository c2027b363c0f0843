#!/usr/bin/env bash
# Proves on this machine that the worker does what CP2 relies on: starts a nats-server and a worker of its own, with
# config/production.toml and the policy files, runs real checks against them, and leaves nothing behind. Flags in the
# environment (CP2_…, WORKER_…_V2_ENABLED) beat the profile; no other setting of the environment reaches the worker.
#
#   scripts/validate_cp2.sh
#
# One line per check. Exit code: 0 all hold; 1 at the first that does not; 64 there is no such option. Policy files and
# profile are those of the repository. Takes some seconds, never more than a minute.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/lib.sh"

case "${1-}" in
"") ;;
-h | --help) usage "${BASH_SOURCE[0]}" ;;
*) no_such_option "${BASH_SOURCE[0]}" "$1" ;;
esac

# Longest wait for one state, in seconds.
patience=10
directory="$(mktemp -d)"
broker_pid=""
worker_pid=""
check="preparation"

# stop PID SIGNAL: ends one of our own processes and waits for it.
stop() {
    [[ -n "$1" ]] || return 0
    kill -s "$2" "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

clean_up() {
    local code=$?
    stop "$worker_pid" KILL
    stop "$broker_pid" KILL
    rm -rf "$directory"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

holds() { say "[OK] $check: $*"; }

# fails REASON...: the end of it, with the last lines of whoever may know more.
fails() {
    say "[ERROR] $check: $*"
    local log
    for log in worker nats; do
        [[ ! -s "$directory/$log.log" ]] || tail -n 5 "$directory/$log.log" | sed "s/^/[INFO] $log: /"
    done
    exit 1
}

# bounded SECONDS COMMAND...: runs it, and ends it when it takes longer.
bounded() {
    if have timeout; then timeout --kill-after 2 "$@"; else shift && "$@"; fi
}

# Runs a command with nothing in its environment but what programs need, and the flags. No function: what is started in
# the background must be the command itself, or its id would be that of a shell around it.
with_flags=(env -i PATH="$PATH" HOME="${HOME:-/}")
for name in $(compgen -e | grep -E '^(CP2_[A-Z0-9_]+|WORKER_(RETRIES|QUEUE)_V2)_ENABLED$' || true); do
    with_flags+=("$name=${!name}")
done

# assignment ID TENANT: one job that leaves a trace.
assignment() {
    printf '{"version":"1","assignment_id":"%s","request_id":"cp2-request","tenant_id":"%s","executor":{"provider_id":"cp2"},"job":{"type":"fs.blob_put","payload":{"path":"data/%s","content":"cp2","overwrite":false}}}\n' \
        "$1" "$2" "$1"
}

# submit: sends the assignments of standard input, prints what comes back as JSON lines; its code is left in $code.
submit() {
    code=0
    bounded 15 env -i PATH="$PATH" "$worker" submit - --timeout-s 10 --output json --nats-url "$nats_url" \
        >"$directory/answers" 2>"$directory/submit.log" || code=$?
}

# answer SUBJECT: the payload of the answer on it.
answer() { grep -F "\"subject\":\"$1\"" "$directory/answers" | head -n 1 || true; }

# runs ID: how often the worker has run it.
runs() { grep -F '"Step execution completed"' "$directory/worker.log" | grep -cF "\"$1\"" || true; }

has_run() { [[ "$(runs "$1")" -gt 0 ]]; }

broker_is_up() {
    kill -0 "$broker_pid" 2>/dev/null || fails "nats-server ended"
    listens "$nats_port"
}

is_ready() {
    kill -0 "$worker_pid" 2>/dev/null || fails "the worker ended before it was ready"
    http_get "$health_port" /readyz >/dev/null 2>&1
}

check_feature_flags() {
    check="feature flags"
    local report flags
    flags=("$root/scripts/worker/validate_feature_flags.sh" --config config/production.toml)
    report="$(bounded 10 "${with_flags[@]}" CAF_WORKER_BIN="$worker" "${flags[@]}")" ||
        fails "not valid"$'\n'"$report"
    grep -vF '[OK]' <<<"$report"
    holds "every value is valid"
    check="policy files"
    report="$(bounded 10 "${with_flags[@]}" CAF_WORKER_BIN="$worker" "$root/scripts/worker/validate_config.sh")" ||
        fails "not valid"$'\n'"$report"
    holds "all three are valid"
}

start_broker() {
    nats_port="$(free_port)"
    nats_url="nats://127.0.0.1:$nats_port"
    "$nats_server" --addr 127.0.0.1 --port "$nats_port" --jetstream --store_dir "$directory/nats" \
        >"$directory/nats.log" 2>&1 &
    broker_pid=$!
    wait_until "$patience" broker_is_up || fails "nats-server does not answer on port $nats_port"
}

# In a directory with the shipped settings, so that the policy files are found as in production.
start_worker() {
    health_port="$(free_port)"
    metrics_port="$(free_port)"
    collector_port="$(free_port)"
    mkdir -p "$directory/node/data"
    cp -R "$root/config" "$directory/node/config"
    cd "$directory/node"
    "${with_flags[@]}" NATS_URL="$nats_url" LOG_LEVEL=info WORKER__HTTP__HEALTH_ADDR="127.0.0.1:$health_port" \
        WORKER__HTTP__METRICS_ADDR="127.0.0.1:$metrics_port" WORKER__HTTP__ADMIN_ADDR=127.0.0.1:0 \
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:$collector_port" WORKER__TENANTS__ALLOWED=cp2-tenant \
        "$worker" serve --config config/production.toml >"$directory/worker.log" 2>&1 &
    worker_pid=$!
    wait_until "$patience" is_ready || fails "the worker is not ready after $patience s"
}

check_jetstream() {
    check="JetStream"
    start_broker
    start_worker
    submit < <(assignment cp2-first cp2-tenant)
    [[ "$code" -eq 0 ]] || fails "an assignment was not answered with success: $(tail -n 1 "$directory/submit.log")"
    holds "the worker is connected, has its streams, and answered an assignment"
}

check_idempotency() {
    check="idempotency"
    local first second
    submit < <(assignment cp2-twice cp2-tenant)
    first="$(answer caf.exec.result.v1)"
    submit < <(assignment cp2-twice cp2-tenant)
    second="$(answer caf.exec.result.v1)"
    [[ "$code" -eq 0 && -n "$first" ]] || fails "the same assignment, sent again, was not answered with success"
    [[ "$first" == "$second" ]] || fails "the same assignment had two results: $first and $second"
    # The log may be a moment behind the answers.
    wait_until "$patience" has_run cp2-twice || fails "no line of the log says that the assignment ran"
    [[ "$(runs cp2-twice)" -eq 1 ]] || fails "the same assignment ran $(runs cp2-twice) times"
    holds "an assignment that is sent twice runs once and has one result"
}

check_tenants() {
    check="tenants"
    submit < <(assignment cp2-stranger stranger)
    [[ "$code" -eq 1 ]] || fails "submit ended with $code for a tenant that is not allowed"
    [[ "$(answer caf.exec.assign.v1.ack)" == *'"tenant_not_allowed"'* ]] ||
        fails "a tenant that is not allowed was not told so: $(answer caf.exec.assign.v1.ack)"
    [[ ! -e "$directory/node/data/cp2-stranger" ]] || fails "the job of a tenant that is not allowed ran"
    holds "a tenant that is not on the list is rejected with tenant_not_allowed"
}

# in_force FEATURE: whether the worker says that it is on.
in_force() { grep -F '"Features in force"' "$directory/worker.log" | grep -qF "\"$1\":\"cp2\""; }

check_metrics() {
    check="metrics"
    in_force metrics || { say "[INFO] metrics: switched off, not checked"; return; }
    local report
    report="$(bounded 20 env WORKER_METRICS_URL="http://127.0.0.1:$metrics_port/metrics" \
        WORKER_URL="http://127.0.0.1:$health_port" "$root/scripts/observability/validate_metrics.sh")" ||
        fails "the page is not as it should be"$'\n'"$report"
    holds "the page answers, and has every name in its form"
}

# After the end: the worker then says what became of every span. No collector is there, and nothing may wait for one.
check_tracing() {
    check="tracing"
    in_force tracing || { say "[INFO] tracing: switched off, not checked"; return; }
    local line spans=0 name count
    line="$(grep -F '"Trace export stopped"' "$directory/worker.log")" || fails "the export did not say what became of its spans"
    for name in exported dropped failed; do
        count="$(grep -oE "\"$name\":[0-9]+" <<<"$line" | grep -oE '[0-9]+$')" || count=0
        spans=$((spans + count))
    done
    ((spans > 0)) || fails "the assignments left no span: $line"
    holds "the assignments left $spans spans; none was waited for"
}

worker="$(find_caf_worker)" || fails "caf-worker is not there: $caf_worker_advice"
if [[ -n "${NATS_SERVER_BIN:-}" ]] && ! is_nats_server "$NATS_SERVER_BIN"; then
    fails "NATS_SERVER_BIN names no nats-server of at least $nats_server_minimum"
fi
nats_server="$(find_nats_server)" ||
    fails "nats-server is not there: run scripts/install-test-tools.sh --only nats-server, or name it in NATS_SERVER_BIN"
nats_server="$(absolute "$nats_server")"

cd "$root"
check_feature_flags
check_jetstream
check_idempotency
check_tenants
check_metrics
check="shutdown"
kill -s TERM "$worker_pid"
code=0
wait "$worker_pid" || code=$?
worker_pid=""
[[ "$code" -eq 0 ]] || fails "the worker left with $code"
holds "the worker left in good order"
check_tracing
