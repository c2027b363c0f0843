#!/usr/bin/env bash
# Counts the instructions that one call of each step of the hot path takes (valgrind, callgrind), and compares them with
# benches/instructions.txt: unlike times, they are the same on a busy machine. Exits 1 when a step takes over 10 % more.
#
#   scripts/instructions.sh                   optimised, as it is shipped
#   scripts/instructions.sh --profile dev     as tests are built: nothing more to build after them
#   scripts/instructions.sh --update          writes what was counted as what is expected
#
# Another compiler counts otherwise: then the comparison is shown, and nothing fails.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

profile=release
update=false
while (($# > 0)); do
    case "$1" in
    --profile)
        profile="${2:-}"
        shift
        ;;
    --update) update=true ;;
    --help) usage "${BASH_SOURCE[0]}" ;;
    *) no_such_option "${BASH_SOURCE[0]}" "$1" ;;
    esac
    shift
done
case "$profile" in
release) folder=release few=200 ;;
dev) folder=debug few=20 ;;
*) die "--profile is release or dev" ;;
esac
have valgrind || die "valgrind is not installed: run scripts/install-test-tools.sh"

expected="$root/benches/instructions.txt"
# Fewest instructions to compare, for all calls of a step.
least=5000000
# Percent above what is expected from which on a step fails: hashing is seeded anew in each process.
tolerance=10
compiler="$(rustc --version | cut -d ' ' -f 2)"
directory="$(mktemp -d)"
trap 'rm -rf "$directory"' EXIT

if [[ -z "${CAF_INSTRUCTIONS_BIN:-}" ]]; then
    # All members, as tests are built: with other features of libraries everything would be built once more.
    cargo build --quiet --manifest-path "$root/Cargo.toml" --profile "$profile" --workspace --examples
    target="$(cargo metadata --manifest-path "$root/Cargo.toml" --format-version 1 --no-deps | grep -oE '"target_directory":"[^"]*"' | cut -d '"' -f 4)"
    CAF_INSTRUCTIONS_BIN="$target/$folder/examples/instructions"
fi

# counted NAME TIMES: instructions of the whole program.
counted() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$CAF_INSTRUCTIONS_BIN" "$1" "$2" 2>"$directory/said" >&2 ||
        die "valgrind failed: $(tail -n 3 "$directory/said")"
    sed -n 's/.*Collected : \([0-9]*\).*/\1/p' "$directory/said"
}

# What is known of this profile: compiler, and each step's number.
known() {
    awk -v profile="$profile" -v name="$1" '$1 == profile && $2 == name { print $3 }' "$expected" 2>/dev/null || true
}

failed=0
known_compiler="$(known compiler)"
lines=("$profile compiler $compiler")
printf '%-16s %14s %14s %8s\n' "$profile" instructions expected change
for name in $("$CAF_INSTRUCTIONS_BIN"); do
    # Twice, so that what the program does before and after falls away; that varies by some 0.1 million, so steps that
    # take little are called more often.
    calls=$few
    while true; do
        count=$(($(counted "$name" $((2 * calls))) - $(counted "$name" "$calls")))
        ((count < least)) || break
        calls=$((10 * calls))
    done
    count=$((count / calls))
    lines+=("$profile $name $count")
    before="$(known "$name")"
    if [[ -z "$before" ]]; then
        printf '%-16s %14s %14s\n' "$name" "$count" "-"
        continue
    fi
    change=$(((count - before) * 100 / before))
    verdict=""
    if ((change > tolerance)) && [[ "$known_compiler" == "$compiler" && "$update" == false ]]; then
        verdict="FAIL: over $tolerance %"
        failed=$((failed + 1))
    elif ((change < -tolerance)); then
        verdict="better: --update"
    fi
    printf '%-16s %14s %14s %7s%%  %s\n' "$name" "$count" "$before" "$change" "$verdict"
done
if [[ "$update" == true ]]; then
    {
        echo "# Instructions of one call, by profile and step; written by scripts/instructions.sh --update."
        grep -v -e '^#' -e "^$profile " "$expected" 2>/dev/null || true
        printf '%s\n' "${lines[@]}"
    } >"$directory/new"
    cp "$directory/new" "$expected"
elif [[ -n "$known_compiler" && "$known_compiler" != "$compiler" ]]; then
    say "expected of $known_compiler, counted with $compiler: shown only"
fi
((failed == 0))
