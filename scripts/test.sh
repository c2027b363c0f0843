#!/usr/bin/env bash
# Everything that must hold before a change is handed over, in one command; CI runs the same. Installs what the tests
# need, runs every check even when an earlier one fails, and ends with one line: "N passed, M failed" (tests only).
# Exits 0 only when every check succeeded, some tests ran and none failed.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

failed_checks=()

# check NAME COMMAND...
check() {
    local name="$1"
    shift
    say "== $name"
    "$@" || failed_checks+=("$name")
}

# Runs all tests and doc tests, shows their output, and keeps it to be counted.
run_tests() {
    cargo test --workspace --no-fail-fast 2>&1 | tee "$output"
}

output="$(mktemp)"
trap 'rm -f "$output"' EXIT

scripts/install-test-tools.sh
NATS_SERVER_BIN="$(find_nats_server)"
export NATS_SERVER_BIN

check "format" cargo fmt --all --check
check "layers" scripts/check-layers.sh
check "layers, self-test" scripts/check-layers.sh --self-test
check "clippy" cargo clippy --workspace --all-targets -- -D warnings
check "documentation" env RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps
check "licences and bans" "$(find_cargo_deny)" check bans licenses sources
check "tests" run_tests
check "instructions" scripts/instructions.sh --profile dev
check "mutants" scripts/mutate.sh

read -r passed failed < <(awk '
    /^test result:/ {
        for (i = 2; i <= NF; i++) {
            if ($i ~ /^passed;/) passed += $(i - 1)
            if ($i ~ /^failed;/) failed += $(i - 1)
        }
    }
    END { print passed + 0, failed + 0 }' "$output")

[[ ${#failed_checks[@]} -eq 0 ]] || (IFS=,; say "failed checks: ${failed_checks[*]}")
say "$passed passed, $failed failed"
[[ ${#failed_checks[@]} -eq 0 && "$failed" -eq 0 && "$passed" -gt 0 ]]
