#!/usr/bin/env bash
# Shows a worker of this machine in Prometheus, with the alerts loaded, and in Grafana where that is installed, with the
# dashboard in place. Prometheus is fetched when it is missing. Stays until Ctrl-C, and ends what it has started.
#
#   scripts/observability/up.sh [OPTION...]
#
#   --target HOST:PORT       a worker's metrics; may be given several times (127.0.0.1:9092)
#   --port PORT              Prometheus, on this machine only (9090)
#   --grafana-port PORT      Grafana, on this machine only (3000)
#   --data DIRECTORY         where their data stays; without, in a directory that is removed at the end
#   --scrape-interval TIME   (5s)
#
# GRAFANA_HOME: where Grafana's files are (/usr/share/grafana). The worker measures while
# CP2_OBSERVABILITY_METRICS_ENABLED is true. Exit code: 0 stopped; 1 something is missing, does not start, or ended; 64 wrong
# use.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../lib.sh"

targets=()
port=9090
grafana_port=3000
data=""
interval=5s
# Longest wait for a server to answer, and to end, in seconds.
patience=30

while [[ $# -gt 0 ]]; do
    case "$1" in
    -h | --help) usage "${BASH_SOURCE[0]}" ;;
    --target | --port | --grafana-port | --data | --scrape-interval)
        if [[ -z "${2-}" ]]; then
            say "[ERROR] $1 needs a value: see ${BASH_SOURCE[0]} --help"
            exit 64
        fi
        case "$1" in
        --target) targets+=("$2") ;;
        --port) port="$2" ;;
        --grafana-port) grafana_port="$2" ;;
        --data) data="$2" ;;
        --scrape-interval) interval="$2" ;;
        esac
        shift 2
        ;;
    *) no_such_option "${BASH_SOURCE[0]}" "$1" ;;
    esac
done
[[ ${#targets[@]} -gt 0 ]] || targets=(127.0.0.1:9092)
wrong_use() { say "[ERROR] $*: see ${BASH_SOURCE[0]} --help" && exit 64; }
for number in "$port" "$grafana_port"; do
    [[ "$number" =~ ^[0-9]{1,5}$ ]] && ((number >= 1 && number <= 65535)) || wrong_use "$number is not a port"
done
for target in "${targets[@]}"; do
    [[ "$target" =~ ^[][A-Za-z0-9.:_-]+:[0-9]{1,5}$ ]] || wrong_use "$target is not HOST:PORT"
done
[[ "$interval" =~ ^[0-9]+(ms|s|m)$ ]] || wrong_use "$interval is not a time such as 5s"

directory="$(mktemp -d)"
[[ -n "$data" ]] || data="$directory/data"
data="$(absolute "$data")"
prometheus_pid=""
grafana_pid=""

# stop PID: ends one of our own processes and waits for it; with force when it does not come to an end.
stop() {
    [[ -n "$1" ]] || return 0
    kill -s TERM "$1" 2>/dev/null || true
    wait_until "$patience" has_ended "$1" || kill -s KILL "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

has_ended() { ! kill -0 "$1" 2>/dev/null; }

clean_up() {
    local code=$?
    trap '' INT TERM
    stop "$grafana_pid"
    stop "$prometheus_pid"
    rm -rf "$directory"
    exit "$code"
}
trap clean_up EXIT
trap 'say "[INFO] stopping"; exit 0' INT TERM

# fails NAME REASON: the end of it, with that server's last lines.
fails() {
    say "[ERROR] $1: $2"
    [[ ! -s "$directory/$1.log" ]] || tail -n 5 "$directory/$1.log" | sed "s/^/[INFO] $1: /"
    exit 1
}

# answers NAME PID PORT PATH
answers() {
    kill -0 "$2" 2>/dev/null || fails "$1" "it ended"
    http_get "$3" "$4" >/dev/null 2>&1
}

# free_or_fail NAME PORT OPTION
free_or_fail() {
    ! listens "$2" || fails "$1" "port $2 is taken: choose another one with $3"
}

# yaml TEXT: as a value.
yaml() { printf "'%s'" "${1//\'/\'\'}"; }

prometheus_config() {
    say "global: {scrape_interval: $interval, evaluation_interval: $interval}"
    say "rule_files: [$(yaml "$root/alerts/worker-alerts.yml")]"
    say "scrape_configs:"
    say "  - job_name: caf-worker"
    say "    static_configs:"
    say "      - targets:"
    local target
    for target in "${targets[@]}"; do
        say "          - $(yaml "$target")"
    done
}

start_prometheus() {
    find_prometheus_program prometheus >/dev/null || "$root/scripts/install-test-tools.sh" --only prometheus
    free_or_fail prometheus "$port" --port
    mkdir -p "$data" || fails prometheus "there is no place for its data"
    prometheus_config >"$directory/prometheus.yml"
    "$(find_prometheus_program prometheus)" --config.file="$directory/prometheus.yml" \
        --storage.tsdb.path="$data/prometheus" --web.listen-address="127.0.0.1:$port" >"$directory/prometheus.log" 2>&1 &
    prometheus_pid=$!
    wait_until "$patience" answers prometheus "$prometheus_pid" "$port" /-/ready || fails prometheus "it does not answer"
    say "[OK] Prometheus: http://127.0.0.1:$port, alerts at http://127.0.0.1:$port/alerts"
}

# Where Grafana is told what to show: our Prometheus, and the dashboard of the repository.
provision_grafana() {
    mkdir -p "$directory"/provisioning/{datasources,dashboards,plugins,alerting} "$data/grafana"
    cat >"$directory/provisioning/datasources/prometheus.yml" <<YAML
apiVersion: 1
datasources:
  - {name: Prometheus, type: prometheus, access: proxy, url: 'http://127.0.0.1:$port', isDefault: true, jsonData: {timeInterval: $interval}}
YAML
    cat >"$directory/provisioning/dashboards/worker.yml" <<YAML
apiVersion: 1
providers:
  - {name: caf-worker, type: file, allowUiUpdates: true, options: {path: $(yaml "$root/dashboards")}}
YAML
}

start_grafana() {
    local grafana
    if grafana="$(type -P grafana)"; then
        grafana=("$grafana" server)
    elif ! grafana="$(type -P grafana-server)"; then
        say "[INFO] Grafana is not installed; where it is, import $root/dashboards/worker-observability.json"
        return
    fi
    free_or_fail grafana "$grafana_port" --grafana-port
    provision_grafana
    # Whoever is on this machine may look; changes need the administrator. Nobody outside is asked anything.
    GF_SERVER_HTTP_ADDR=127.0.0.1 GF_SERVER_HTTP_PORT="$grafana_port" GF_PATHS_DATA="$data/grafana" \
        GF_PATHS_LOGS="$directory" GF_PATHS_PLUGINS="$data/grafana/plugins" GF_PATHS_PROVISIONING="$directory/provisioning" \
        GF_AUTH_ANONYMOUS_ENABLED=true GF_AUTH_ANONYMOUS_ORG_ROLE=Viewer GF_ANALYTICS_REPORTING_ENABLED=false \
        GF_ANALYTICS_CHECK_FOR_UPDATES=false GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES=false \
        GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH="$root/dashboards/worker-observability.json" \
        "${grafana[@]}" --homepath "${GRAFANA_HOME:-/usr/share/grafana}" >"$directory/grafana.log" 2>&1 &
    grafana_pid=$!
    wait_until "$patience" answers grafana "$grafana_pid" "$grafana_port" /api/health || fails grafana "it does not answer"
    say "[OK] Grafana: http://127.0.0.1:$grafana_port/d/caf-worker-observability"
}

# Whether every target has been scraped with success.
targets_are_up() {
    local answer
    answer="$(http_get "$port" '/api/v1/query?query=count(up==1)' 2>/dev/null)" || return 1
    [[ "$answer" == *"\"${#targets[@]}\"]"* ]]
}

# silent_targets: those that Prometheus could not scrape, with its reason.
silent_targets() {
    local answer
    answer="$(http_get "$port" '/api/v1/targets?state=active' 2>/dev/null)" || return 0
    grep -oE '"scrapeUrl":"[^"]*"|"lastError":"([^"\\]|\\.)*"|"health":"[a-z]*"' <<<"$answer" |
        awk -F '":"' '{ sub(/"$/, "", $NF) }
            $1 ~ /scrapeUrl/ { url = $2 }
            $1 ~ /lastError/ { error = $2 }
            $1 ~ /health/ && $2 != "up" { print url ": " (error == "" ? "not asked yet" : error) }'
}

start_prometheus
start_grafana
if wait_until 15 targets_are_up; then
    say "[OK] scraped: ${targets[*]}"
else
    silent="$(silent_targets)"
    say "[WARN] not all targets answer yet; does the worker run there, with CP2_OBSERVABILITY_METRICS_ENABLED=true?"
    [[ -z "$silent" ]] || sed 's/^/[WARN] silent: /' <<<"$silent"
fi
say "[INFO] Ctrl-C ends it"
wait -n || true
for name in prometheus grafana; do
    pid="${name}_pid"
    [[ -z "${!pid}" ]] || ! has_ended "${!pid}" || fails "$name" "it ended"
done
