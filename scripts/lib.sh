# shellcheck shell=bash
# Helpers that the scripts share. Sourced, never run: it sets nothing but functions and the variables below.

# Root of the workspace.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# Where programs that only this project needs are put; gone with `cargo clean`.
tools="$root/target/tools"
# Oldest nats-server that has what the worker uses.
nats_server_minimum="2.9.0"

say() { printf '%s\n' "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# usage SCRIPT: prints the comment at its head, and ends the script.
usage() {
    sed -n -e '1d' -e '/^#/!q' -e 's/^# \{0,1\}//p' "$1"
    exit 0
}

# no_such_option SCRIPT WORD: says that it cannot be used so, and ends the script.
no_such_option() {
    say "[ERROR] there is no option $2: see $1 --help"
    exit 64
}

have() { command -v "$1" >/dev/null 2>&1; }

# as_root COMMAND...: runs it as root, through sudo when we are somebody else.
as_root() {
    if [[ $(id -u) -eq 0 ]]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        die "this needs root, and there is no sudo: $*"
    fi
}

# version_at_least VERSION MINIMUM
version_at_least() {
    [[ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" == "$2" ]]
}

# is_nats_server PROGRAM: whether it runs and is new enough.
is_nats_server() {
    local version
    version="$("$1" --version 2>/dev/null | grep -oE '[0-9]+\.[0-9]+\.[0-9]+' | head -n 1)" || return 1
    [[ -n "$version" ]] && version_at_least "$version" "$nats_server_minimum"
}

# find_nats_server: prints the program to use, or fails. Named by NATS_SERVER_BIN, on PATH, or of our own.
find_nats_server() {
    local candidate
    for candidate in "${NATS_SERVER_BIN:-}" "$(command -v nats-server || true)" "$tools"/*/bin/nats-server /usr/sbin/nats-server; do
        if [[ -n "$candidate" && -x "$candidate" ]] && is_nats_server "$candidate"; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

# absolute PATH: the same place, whatever directory is changed to.
absolute() {
    case "$1" in
    /*) printf '%s\n' "$1" ;;
    *) printf '%s\n' "$PWD/$1" ;;
    esac
}

# find_caf_worker: prints the program to use, or fails. Named by CAF_WORKER_BIN (then that one or none), built here, or
# on PATH.
find_caf_worker() {
    local candidate candidates=("$root/target/release/caf-worker" "$root/target/debug/caf-worker" "$(command -v caf-worker || true)")
    if [[ -n "${CAF_WORKER_BIN:-}" ]]; then
        candidates=("$(command -v "$CAF_WORKER_BIN" || true)")
    fi
    for candidate in "${candidates[@]}"; do
        if [[ -f "$candidate" && -x "$candidate" ]]; then
            absolute "$candidate"
            return 0
        fi
    done
    return 1
}

# How to get it.
caf_worker_advice="build it with 'cargo build --release', or name it in CAF_WORKER_BIN"

# find_postgres_program NAME: prints a program of the PostgreSQL server, or fails.
find_postgres_program() {
    local candidate
    candidate="$(printf '%s\n' /usr/lib/postgresql/*/bin/"$1" | sort -V | tail -n 1)"
    if [[ -x "$candidate" ]]; then
        printf '%s\n' "$candidate"
    else
        command -v "$1"
    fi
}

# find_prometheus_program NAME: prints `prometheus` or `promtool`, or fails. On PATH, or of our own.
find_prometheus_program() {
    local own="$tools/prometheus/usr/bin/$1"
    type -P "$1" || { [[ -x "$own" ]] && printf '%s\n' "$own"; }
}

# find_chromium: prints the browser that tests use, or fails. Named by CHROMIUM_BIN, or on PATH.
find_chromium() {
    local name
    for name in "${CHROMIUM_BIN:-}" chromium-headless-shell chromium google-chrome; do
        if [[ -n "$name" ]] && command -v "$name"; then
            return 0
        fi
    done
    return 1
}

# find_cargo_deny: prints the program to use, or fails. On PATH, or of our own.
find_cargo_deny() {
    command -v cargo-deny || { [[ -x "$tools/bin/cargo-deny" ]] && printf '%s\n' "$tools/bin/cargo-deny"; }
}

# listens PORT: whether somebody accepts connections on that port of this machine.
listens() {
    (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# free_port: prints a port on which nobody listens, below those that the system uses for outgoing connections.
free_port() {
    local port attempt
    for ((attempt = 0; attempt < 100; attempt++)); do
        port=$((15000 + RANDOM % 17000))
        if ! listens "$port"; then
            printf '%s\n' "$port"
            return 0
        fi
    done
    die "found no free port"
}

# wait_until SECONDS COMMAND...: runs it again and again until it succeeds; fails when the time is over.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# http_get PORT PATH: prints the body of the answer; fails unless the status is 200.
http_get() {
    if have curl; then
        curl --silent --fail --max-time 5 "http://127.0.0.1:$1$2"
        return
    fi
    local status line
    exec 9<>"/dev/tcp/127.0.0.1/$1" || return 1
    printf 'GET %s HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' "$2" >&9
    IFS= read -r -t 5 status <&9 || status=""
    while IFS= read -r -t 5 line <&9 && [[ "$line" != $'\r' ]]; do :; done
    cat <&9
    exec 9>&-
    [[ "$status" == *" 200"* ]]
}
