#!/usr/bin/env bash
# Judges what a running worker measures: fetches its page of metrics and checks status, content type, text format, every
# name that the contract and the dashboard need with its labels and type, that no id is a label, and how many series there are.
#
#   scripts/observability/validate_metrics.sh [--strict] [--detailed]
#
#   --strict     demands a series of every name, also of what is measured only once it happens (jobs, retries, limits, refusals,
#                flows). Without, what has not happened yet is named in one [INFO] line
#   --detailed   ids of runs, flows and steps may be labels: the worker is in its detailed mode
#
# WORKER_METRICS_URL: the page (http://localhost:9092/metrics). WORKER_URL: the health port, asked only to say why the page is
# not there (http://localhost:9091). 100000 series warn, 1000000 fail. Uses promtool where it is installed.
#
# Exit code: 0 passed; 1 failed; 2 worker not running, or it measures nothing (CP2_OBSERVABILITY_METRICS_ENABLED is off); 64
# wrong use.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../lib.sh"

url="${WORKER_METRICS_URL:-http://localhost:9092/metrics}"
health="${WORKER_URL:-http://localhost:9091}"
strict=false
detailed=false
for argument in "$@"; do
    case "$argument" in
    -h | --help) usage "${BASH_SOURCE[0]}" ;;
    --strict) strict=true ;;
    --detailed) detailed=true ;;
    *) no_such_option "${BASH_SOURCE[0]}" "$argument" ;;
    esac
done

# From when on there is a series, name, type, labels. `start`: from the first scrape; `later`: once it has happened.
required() {
    cat <<'TABLE'
later worker_tasks_total counter block_type status
later worker_task_latency_ms histogram block_type
start worker_pool_queue_depth gauge resource_class
start worker_task_failures_total counter
start worker_resource_cpu_time_ms gauge
start worker_resource_mem_bytes gauge
later worker_step_executions_total counter step_type execution_status tenant_id run_id flow_id step_id
later worker_step_execution_duration_seconds histogram step_type execution_status tenant_id run_id flow_id step_id
later worker_step_errors_total counter step_type error_code
later worker_flow_execution_duration_seconds histogram tenant_id run_id flow_id
start worker_queue_depth gauge resource_pool
start worker_active_tasks gauge resource_pool
start worker_health_status gauge check
later worker_retry_attempts_total counter error_code step_type retryable
later worker_retry_success_rate gauge error_code step_type
later worker_retry_backoff_duration_seconds histogram attempt step_type
later worker_retry_budget_usage gauge step_type
later worker_timeout_events_total counter operation_type timeout_type
later worker_timeout_duration_seconds histogram operation_type
later worker_timeout_rate gauge operation_type
later worker_operations_total counter operation_type
later worker_queue_rejections_total counter resource_pool rejection_reason
later worker_queue_acceptances_total counter resource_pool
later worker_queue_wait_seconds histogram resource_pool
later worker_overload_status gauge resource_pool
start worker_pool_slots gauge resource_pool
start worker_pool_slots_used gauge resource_pool
start worker_pool_slots_available gauge resource_pool
later worker_wait_seconds histogram cause
later worker_publish_to_result_seconds histogram
later worker_publish_seconds histogram kind
start worker_outbox_entries gauge
start worker_outbox_bytes gauge
start worker_outbox_oldest_age_seconds gauge
start worker_jobs_held gauge
start worker_permits_available gauge
start worker_leases_held gauge
start worker_lease_oldest_age_seconds gauge
later worker_leases_lapsed_total counter
later worker_last_delivery_age_seconds gauge
later worker_pending_messages gauge
start worker_connected gauge
start worker_consuming gauge
start worker_ready gauge
start worker_draining gauge
start worker_drain_seconds gauge
later worker_pull_rebuilds_total counter
later worker_restarts_total counter actor
start worker_restart_budget_used gauge
start worker_stray_threads gauge
later worker_duplicates_total counter kind
later worker_results_suppressed_total counter
later worker_dead_letters_total counter error_code
later worker_assignments_total counter row
later worker_event_loop_lag_seconds histogram event_loop
later worker_event_loop_blocked_seconds gauge event_loop
start worker_series_limited_total counter metric
later worker_errors_total counter error_code tenant_id run_id
start worker_build_info gauge version
start process_cpu_seconds_total counter
start process_resident_memory_bytes gauge
start process_open_fds gauge
start process_max_fds gauge
start process_threads gauge
start process_start_time_seconds gauge
TABLE
}

directory="$(mktemp -d)"
trap 'rm -rf "$directory"' EXIT
failed=false
holds() { say "[OK] $*"; }
fails() {
    say "[ERROR] $*"
    failed=true
}

# fetch URL: leaves status, content type and body in $status, $type and $directory/page; fails when nobody answers.
fetch() {
    status="" type=""
    if have curl; then
        local told
        told="$(curl --silent --max-time 10 --output "$directory/page" --write-out '%{http_code} %{content_type}' -- "$1")" || return 1
        status="${told%% *}" type="${told#* }"
        return
    fi
    [[ "$1" =~ ^http://([^/:]+)(:([0-9]+))?(/.*)?$ ]] || return 1
    local host="${BASH_REMATCH[1]}" port="${BASH_REMATCH[3]:-80}" path="${BASH_REMATCH[4]:-/}" line
    { exec 9<>"/dev/tcp/$host/$port"; } 2>/dev/null || return 1
    printf 'GET %s HTTP/1.0\r\nHost: %s\r\n\r\n' "$path" "$host" >&9
    IFS= read -r -t 10 line <&9 || return 1
    read -r _ status _ <<<"$line"
    while IFS= read -r -t 10 line <&9 && [[ "$line" != $'\r' ]]; do
        [[ "${line,,}" != content-type:* ]] || type="${line#*: }"
    done
    type="${type%$'\r'}"
    cat <&9 >"$directory/page"
    exec 9>&-
}

# Reads the page in one go and prints findings: "error TEXT", "type NAME TYPE", "labels NAME LABEL..." (those that
# every sample of the family has).
read_page() {
    awk -v detailed="$detailed" '
        function error(text) { if (++errors <= 20) print "error line " NR ": " text }
        function family(name,    base) {
            if (name in type) return name
            base = name
            sub(/_(bucket|sum|count)$/, "", base)
            return (base in type && (type[base] == "histogram" || type[base] == "summary")) ? base : ""
        }
        # Labels of one sample into label[], their number into count; what is left of the text, or "" when they cannot be read.
        function read_labels(text,    name, value) {
            count = 0
            if (substr(text, 1, 1) != "{") return text
            text = substr(text, 2)
            while (substr(text, 1, 1) != "}") {
                if (!match(text, /^[a-zA-Z_][a-zA-Z0-9_]*="/)) return ""
                name = substr(text, 1, RLENGTH - 2)
                text = substr(text, RLENGTH + 1)
                if (!match(text, /^([^"\\]|\\["\\n])*"/)) return ""
                value = substr(text, 1, RLENGTH - 1)
                text = substr(text, RLENGTH + 1)
                label[++count] = name
                of[name] = value
                if (substr(text, 1, 1) == ",") text = substr(text, 2)
                else if (substr(text, 1, 1) != "}") return ""
            }
            return substr(text, 2)
        }
        # UUID, ULID, or the 32 digits of a trace. Not every awk knows /x{8}/.
        function is_id(value,    length_of) {
            length_of = length(value)
            return (length_of == 36 && value ~ /^[0-9a-fA-F]+-[0-9a-fA-F]+-[0-9a-fA-F]+-[0-9a-fA-F]+-[0-9a-fA-F]+$/) \
                || (length_of == 26 && value ~ /^[0-7][0-9A-HJKMNP-TV-Z]+$/) || (length_of == 32 && value ~ /^[0-9a-f]+$/)
        }
        function check_ids(name, value) {
            if (name ~ /^(trace|span|assignment|request|message)_id$/) error(name " is a label")
            else if (name ~ /^(run|flow|step)_id$/) { if (value != "" && detailed != "true") error(name " has a value, " value) }
            # A tenant that is listed, and a worker, may be called so.
            else if (name !~ /^(tenant|worker)_id$/ && is_id(value)) error("an id is the value of " name ": " value)
        }
        /^# TYPE / {
            if (NF != 4 || $4 !~ /^(counter|gauge|histogram|summary|untyped)$/) error("no type: " $0)
            else if ($3 in type) error("the second type of " $3)
            else { type[$3] = $4; print "type", $3, $4 }
            next
        }
        /^#/ || /^$/ { next }
        {
            if (!match($0, /^[a-zA-Z_:][a-zA-Z0-9_:]*/)) { error("no name: " $0); next }
            name = substr($0, 1, RLENGTH)
            rest = substr($0, RLENGTH + 1)
            identity = $0
            # Up to the value: behind the labels, or behind the name.
            if (match(identity, /\} [^}]*$/)) identity = substr(identity, 1, RSTART)
            else identity = name
            if (identity in seen) error("the series is there twice: " identity)
            seen[identity] = 1
            rest = read_labels(rest)
            if (rest !~ /^ +([+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?Inf|NaN)( +-?[0-9]+)?$/) { error("no sample: " $0); next }
            home = family(name)
            if (home == "") { error(name " has no type"); next }
            samples[home]++
            for (i = 1; i <= count; i++) {
                having[home, label[i]]++
                names[label[i]] = 1
                check_ids(label[i], of[label[i]])
            }
            # Of a histogram, sum and count do not have it.
            if (type[home] == "histogram" && name ~ /_bucket$/ && !("le" in of)) error("a bucket without le: " $0)
            for (i = 1; i <= count; i++) delete of[label[i]]
        }
        END {
            for (home in samples) {
                line = "labels " home
                for (name in names) if (having[home, name] == samples[home]) line = line " " name
                print line
            }
            if (errors > 20) print "error and " errors - 20 " more"
        }' "$directory/page"
}

if ! fetch "$url"; then
    if mv "$directory/page" "$directory/nothing" 2>/dev/null; fetch "${health%/}/livez"; then
        say "[ERROR] nobody answers at $url, but ${health%/} does: the worker measures nothing while CP2_OBSERVABILITY_METRICS_ENABLED is off"
    else
        say "[ERROR] nobody answers at $url: the worker is not running, or CP2_OBSERVABILITY_METRICS_ENABLED is off"
    fi
    exit 2
fi
if [[ "$status" != 200 ]]; then
    say "[ERROR] status: $url answered $status"
    exit 1
fi
holds "status: 200"
shopt -s nocasematch
if [[ "$type" =~ ^text/plain\;(.*\;)?\ *version=0\.0\.4(\;|$) ]]; then
    holds "content type: $type"
else
    fails "content type: ${type:-none}, not text/plain; version=0.0.4"
fi
shopt -u nocasematch

series="$(grep -c '^[^#]' "$directory/page" || true)"
if ((series >= 1000000)); then
    fails "cardinality: $series series, at least 1000000; nothing else was looked at"
    exit 1
fi
read_page >"$directory/findings"
if [[ ! -s "$directory/page" || -n "$(tail -c 1 "$directory/page")" ]]; then
    fails "text format: the page is empty, or its last line has no end"
fi
if promtool="$(find_prometheus_program promtool)"; then
    code=0
    "$promtool" check metrics <"$directory/page" >"$directory/promtool" 2>&1 || code=$?
    # 3: it reads the page, and would name something otherwise than the contract does.
    [[ "$code" -eq 0 || "$code" -eq 3 ]] || fails "text format: promtool: $(tail -n 1 "$directory/promtool")"
    reader="promtool"
else
    reader="this script only, promtool is not installed"
fi
if grep -q '^error ' "$directory/findings"; then
    while read -r _ finding; do fails "text format: $finding"; done < <(grep '^error ' "$directory/findings")
else
    [[ "$failed" == true ]] || holds "text format, no id is a label (read by $reader)"
fi

unseen=()
declare -A type_of=() labels_of=()
while read -r what name rest; do
    case "$what" in
    type) type_of["$name"]="$rest" ;;
    labels) labels_of["$name"]=" $rest " ;;
    esac
done <"$directory/findings"
checked=0
while read -r when name kind labels; do
    checked=$((checked + 1))
    if [[ -z "${type_of[$name]-}" ]]; then
        fails "$name is missing"
        continue
    fi
    [[ "${type_of[$name]}" == "$kind" ]] || fails "$name is a ${type_of[$name]}, not a $kind"
    if [[ -z "${labels_of[$name]-}" ]]; then
        if [[ "$when" == later && "$strict" == false ]]; then unseen+=("$name"); else fails "$name has no series"; fi
        continue
    fi
    for label in $labels; do
        [[ "${labels_of[$name]}" == *" $label "* ]] || fails "$name has no label $label"
    done
done < <(required)
[[ "$failed" == true ]] || holds "names, labels and types: $checked checked"
[[ ${#unseen[@]} -eq 0 ]] || say "[INFO] no series yet, since it has not happened: ${unseen[*]}"

if ((series >= 100000)); then
    say "[WARN] cardinality: $series series, at least 100000"
else
    holds "cardinality: $series series"
fi
[[ "$failed" == false ]]
