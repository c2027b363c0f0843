#!/usr/bin/env bash
# Looks for inputs that break what must always hold (fuzz/), each target for a time. Works with the stable toolchain:
# without a sanitizer, with assertions and overflow checks. Installs cargo-fuzz into target/tools when it is missing.
#
#   scripts/fuzz.sh [SECONDS] [TARGET...]     60 seconds for each target, or for those that are named
#   FUZZ_SANITIZER=address scripts/fuzz.sh    with a sanitizer, which needs a nightly toolchain (RUSTUP_TOOLCHAIN=nightly)
#
# What is found is left in fuzz/artifacts/<target>/: mend it, and copy the file to fuzz/corpus/<target>/, which ordinary
# tests replay. Inputs that are merely new stay in target/fuzz-corpus/<target>/ and are begun with the next time.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

case "${1:-}" in -h | --help) usage "$0" ;; esac

# Largest input in bytes: more finds the same, slower.
max_bytes=4096

seconds="${1:-60}"
[[ "$seconds" =~ ^[1-9][0-9]*$ ]] || die "seconds must be a number, not $seconds"
shift || true

PATH="$tools/bin:$PATH"
if ! have cargo-fuzz; then
    say "installing cargo-fuzz into $tools, which takes a minute or two"
    cargo install cargo-fuzz --locked --quiet --root "$tools" --target-dir "$root/target/tools-build"
fi

mapfile -t targets < <(cd fuzz/fuzz_targets && printf '%s\n' *.rs | sed 's/\.rs$//')
[[ $# -eq 0 ]] || targets=("$@")
sanitizer="${FUZZ_SANITIZER:-none}"
failed=()
for target in "${targets[@]}"; do
    [[ -e "fuzz/fuzz_targets/$target.rs" ]] || die "there is no target $target in fuzz/fuzz_targets"
    found="$root/target/fuzz-corpus/$target"
    mkdir -p "$found" "fuzz/corpus/$target"
    say "== $target, $seconds s"
    cargo fuzz run --release --sanitizer "$sanitizer" --target-dir "$root/target/fuzz" "$target" "$found" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -max_len="$max_bytes" -rss_limit_mb=2048 -timeout=10 -verbosity=0 -print_final_stats=1 ||
        failed+=("$target")
done
[[ ${#failed[@]} -eq 0 ]] || die "broken: ${failed[*]}; see fuzz/artifacts"
say "${#targets[@]} targets, nothing found"
