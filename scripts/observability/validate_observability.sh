#!/usr/bin/env bash
# Checks what a running worker shows: its health page, its log (form of each line, step_id only beside run_id, flow_id and
# tenant_id), secrets in all of it, and its metrics where they are on.
#
#   scripts/observability/validate_observability.sh [--log FILE|-]... [--secret VALUE]... [--secrets FILE]
#
#   --log FILE      a log of the worker to check; - is standard input; repeatable. Without one no log is checked;
#                   one that is not there, or empty, fails.
#   --secret VALUE  must be nowhere, in no form (as it is, as JSON, as base64, as in URLs); repeatable
#   --secrets FILE  such values, one per line
#
# WORKER_URL (http://localhost:9091) and WORKER_METRICS_URL (http://localhost:9092/metrics) say where the worker is;
# caf-worker itself judges: CAF_WORKER_BIN names it. Whether errors went to standard error cannot be told from a file.
#
# Exit code: 0 passed, 1 failed, 2 the worker is not running. 64: usage. 69: the program caf-worker is missing.
set -euo pipefail
here="$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
# shellcheck source=scripts/lib.sh
source "$here/../lib.sh"

logs=()
secrets=()
while [[ $# -gt 0 ]]; do
    case "$1" in
    -h | --help) usage "${BASH_SOURCE[0]}" ;;
    --log | --secret | --secrets)
        if [[ $# -lt 2 ]]; then
            say "[ERROR] $1 needs a value: see ${BASH_SOURCE[0]} --help"
            exit 64
        fi
        if [[ "$1" == --log ]]; then logs+=("$2"); else secrets+=("$1=$2"); fi
        shift 2
        ;;
    *) no_such_option "${BASH_SOURCE[0]}" "$1" ;;
    esac
done
if ! worker="$(find_caf_worker)"; then
    say "[ERROR] caf-worker is not there: $caf_worker_advice"
    exit 69
fi
worker_url="${WORKER_URL:-http://localhost:9091}"
metrics_url="${WORKER_METRICS_URL:-http://localhost:9092/metrics}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
failed=0

# fetch URL: prints status line, headers and body, as they came; fails when nobody answers.
fetch() {
    if have curl; then
        curl --silent --show-error --include --http1.1 --max-time 5 "$1" 2>/dev/null
        return
    fi
    local rest="${1#http://}" address host port
    address="${rest%%/*}"
    host="${address%:*}" port="${address##*:}"
    [[ "$port" != "$address" ]] || port=80
    exec 9<>"/dev/tcp/${host//[\[\]]/}/$port" || return 1
    printf 'GET /%s HTTP/1.0\r\nHost: %s\r\n\r\n' "$([[ "$rest" == */* ]] && printf '%s' "${rest#*/}")" "$address" >&9
    timeout 5 cat <&9
    exec 9>&-
}

# judge KIND FILE: lets the program check it, and notes what comes of it.
judge() {
    local code=0
    "$worker" check "$1" "${secrets[@]}" -- "$2" || code=$?
    case "$code" in
    0) ;;
    1) failed=1 ;;
    *)
        say "[ERROR] caf-worker check $1 ended with $code"
        exit 64
        ;;
    esac
}

# expect WHAT CONDITION...: says which it is.
expect() {
    local what="$1"
    shift
    if "$@"; then
        say "[OK] $what"
    else
        say "[ERROR] $what: it is not so"
        failed=1
    fi
}

if ! (fetch "$worker_url/_health") >"$scratch/answer" 2>/dev/null || [[ ! -s "$scratch/answer" ]]; then
    say "[SKIP] nobody answers at $worker_url/_health: the worker is not running"
    exit 2
fi
tr -d '\r' <"$scratch/answer" | sed '/^$/q' >"$scratch/head"
sed '1,/^\r\{0,1\}$/d' "$scratch/answer" >"$scratch/health"
expect "the health page answers with status 200" grep -qE '^HTTP/[0-9.]+ 200( |$)' "$scratch/head"
expect "the health page is application/json" grep -qiE '^content-type: *application/json *(;|$)' "$scratch/head"
judge health "$scratch/health"

if [[ ${#logs[@]} -eq 0 ]]; then
    say "[INFO] no log was named with --log: none is checked"
fi
for log in "${logs[@]}"; do
    if [[ "$log" != - && (-d "$log" || ! -r "$log") ]]; then
        say "[ERROR] $log: no file that can be read, so that there is nothing to judge"
        failed=1
    else
        judge log "$log"
    fi
done

if (fetch "$metrics_url") >"$scratch/metrics" 2>/dev/null && [[ -s "$scratch/metrics" ]]; then
    judge text "$scratch/metrics"
    if [[ -x "$here/validate_metrics.sh" ]]; then
        expect "validate_metrics.sh is content with $metrics_url" env WORKER_METRICS_URL="$metrics_url" "$here/validate_metrics.sh"
    fi
else
    say "[INFO] nobody answers at $metrics_url: metrics are off, and none are checked"
fi
if [[ "$failed" -ne 0 ]]; then
    say "[ERROR] failed"
    exit 1
fi
say "[OK] passed"
