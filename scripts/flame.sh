#!/usr/bin/env bash
# Records where a running worker spends its processor time, and draws it as a flame graph (SVG). Needs perf and inferno
# (cargo install inferno).
#
#   scripts/flame.sh PID SECONDS FILE.svg
#
# Stacks are whole when the worker is built with frame pointers and names:
#
#   RUSTFLAGS="-C force-frame-pointers=yes" CARGO_PROFILE_RELEASE_STRIP=none CARGO_PROFILE_RELEASE_DEBUG=1 cargo build --release
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[[ "${1:-}" != --help ]] || usage "${BASH_SOURCE[0]}"
(($# == 3)) || die "a process, seconds and a file are needed: see $0 --help"
pid="$1" seconds="$2" graph="$3"
for program in perf inferno-collapse-perf inferno-flamegraph; do
    have "$program" || die "$program is not installed"
done
directory="$(mktemp -d)"
trap 'rm -rf "$directory"' EXIT

perf record --quiet --freq 999 --call-graph fp --pid "$pid" --output "$directory/perf" -- sleep "$seconds"
perf script --input "$directory/perf" >"$directory/stacks" 2>/dev/null
inferno-collapse-perf <"$directory/stacks" 2>/dev/null >"$directory/folded"
# What took less than a third of a percent is not drawn.
inferno-flamegraph --title "caf-worker" --minwidth 0.33 <"$directory/folded" >"$graph"
say "$graph: $(wc -l <"$directory/folded") stacks"
