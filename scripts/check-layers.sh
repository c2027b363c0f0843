#!/usr/bin/env bash
# Checks who may use whom: the rules that the compiler does not know. Prints each line that breaks one and exits 1.
# Lines that are comments are not looked at.
#
#   scripts/check-layers.sh               checks this workspace
#   scripts/check-layers.sh --self-test   plants one violation of each rule in an empty tree and expects to find it
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

violations=0

# report RULE LINES: counts and shows a broken rule.
report() {
    violations=$((violations + 1))
    printf 'broken: %s\n%s\n' "$1" "$2"
}

# forbid RULE PATTERN ALLOWED FILES DIRECTORY...: no line of the files (a name pattern) may match, but in paths that
# match ALLOWED ("-" for none).
forbid() {
    local rule="$1" pattern="$2" allowed="$3" files="$4" directory lines
    shift 4
    local directories=()
    for directory in "$@"; do
        [[ -e "$tree/$directory" ]] && directories+=("$directory")
    done
    [[ ${#directories[@]} -gt 0 ]] || return 0
    lines="$(cd "$tree" && grep -rnE --include="$files" --exclude-dir=target -- "$pattern" "${directories[@]}" |
        grep -vE '^[^:]+:[0-9]+:[[:space:]]*(//|#[^[])' || true)"
    [[ "$allowed" == "-" ]] || lines="$(grep -vE "^($allowed)" <<<"$lines" || true)"
    [[ -z "$lines" ]] || report "$rule" "$lines"
}

# check_all TREE: every rule.
check_all() {
    tree="$1"
    violations=0
    # In quotes it is the name of what writes log lines.
    forbid "async_nats only in actors/src/nats" \
        '(^|[^"[:alnum:]_])async_nats\b' 'actors/src/nats(\.rs:|/)' '*.rs' src actors
    forbid "the protocol knows no runtime, no broker and does no I/O" \
        '\b(actix|actix_rt|actix_web|async_nats|awc|tokio_postgres|rusqlite)\b|\btokio::(net|fs|process)\b|\bstd::(fs|process)\b|\b(Tcp|Udp)(Stream|Listener|Socket)\b' \
        - '*.rs' actors/protocol/src
    forbid "the protocol depends on no runtime and no broker" \
        '^(actix|async-nats|awc|tokio-postgres|rusqlite)' - 'Cargo.toml' actors/protocol
    forbid "the protocol uses no other crate of ours" '\bcaf_(actors|blocks|worker)\b' - '*.rs' actors/protocol/src
    forbid "blocks use the protocol only" '\bcaf_(actors|worker)\b' - '*.rs' actors/blocks/src
    forbid "actors get blocks as an argument and never import them" '\bcaf_(blocks|worker)\b' - '*.rs' actors/src
    forbid "actix internals only in actors/src/runtime.rs" \
        '\b(Arbiter|ArbiterHandle|SyncArbiter|SyncContext|Supervised|set_mailbox_capacity|do_send)\b|\bactix::(\{[^}]*\b)?Supervisor\b' \
        'actors/src/runtime(\.rs:|/)' '*.rs' actors/src
    forbid "no test is ignored" '#\[(cfg_attr\(.*, *)?ignore\b' - '*.rs' src actors tests benches
    local files
    files="$(cd "$tree" && find . -name target -prune -o -name .git -prune -o -name mod.rs -print)"
    [[ -z "$files" ]] || report "no mod.rs: a module's file has the module's name" "$files"
    [[ "$violations" -eq 0 ]]
}

# plant PATH LINE: a tree with that line only must not pass.
plant() {
    local tree_of_one
    tree_of_one="$(mktemp -d "$scratch/tree.XXXXXX")"
    mkdir -p "$tree_of_one/$(dirname "$1")"
    printf '%s\n' "$2" >"$tree_of_one/$1"
    if check_all "$tree_of_one" >/dev/null; then
        die "self-test: not found in $1: $2"
    fi
}

# allow PATH LINE: a tree with that line only must pass.
allow() {
    local tree_of_one
    tree_of_one="$(mktemp -d "$scratch/tree.XXXXXX")"
    mkdir -p "$tree_of_one/$(dirname "$1")"
    printf '%s\n' "$2" >"$tree_of_one/$1"
    check_all "$tree_of_one" || die "self-test: wrongly found in $1: $2"
}

self_test() {
    scratch="$(mktemp -d)"
    trap 'rm -rf "$scratch"' EXIT
    plant src/doctor.rs 'use async_nats::Client;'
    plant actors/src/publisher.rs '    async_nats::connect(url).await'
    plant actors/src/nats_like.rs 'use async_nats::jetstream;'
    plant actors/protocol/src/ack.rs 'use actix::prelude::*;'
    plant actors/protocol/src/ack.rs 'let socket = tokio::net::TcpStream::connect(address);'
    plant actors/protocol/src/ack.rs 'use std::fs;'
    plant actors/protocol/Cargo.toml 'async-nats.workspace = true'
    plant actors/protocol/src/ack.rs 'use caf_actors::pool;'
    plant actors/blocks/src/echo.rs 'use caf_actors::pool;'
    plant actors/src/pool.rs 'use caf_blocks::echo;'
    plant actors/src/pool.rs 'let arbiter = actix::Arbiter::new();'
    plant actors/src/pool.rs 'use actix::{Actor, Supervisor};'
    plant actors/src/pool.rs 'ctx.set_mailbox_capacity(1);'
    plant actors/src/pool.rs 'next.do_send(Job);'
    plant tests/node.rs '#[ignore]'
    plant actors/src/pool/tests.rs '    #[ignore = "slow"]'
    plant tests/node.rs '#[cfg_attr(not(unix), ignore)]'
    plant actors/src/pool/mod.rs ''
    allow actors/src/nats/sink.rs 'use async_nats::HeaderMap;'
    allow actors/src/nats.rs 'use async_nats::Client;'
    allow actors/src/runtime.rs 'let arbiter = actix::Arbiter::new();'
    allow actors/src/supervisor.rs 'pub struct Supervisor {'
    allow actors/src/pool.rs '    // not do_send: it ignores the bound'
    allow actors/protocol/src/ack.rs '//! Knows no actix.'
    allow tests/kit/src/client.rs 'use async_nats::Client;'
    allow actors/src/levels.rs '    ("async_nats", Level::Info),'
    allow src/wiring.rs 'use caf_blocks::echo;'
    say "layers: the check finds what it should"
}

case "${1:-}" in
"")
    check_all "$root" || die "layers: $violations rules are broken"
    say "layers: in order"
    ;;
--self-test) self_test ;;
*) die "usage: scripts/check-layers.sh [--self-test]" ;;
esac
