#!/usr/bin/env bash
# Prints each feature flag with its value, where that comes from, and whether the feature is the CP1 baseline or in CP2
# mode, as the worker itself sees them from here: environment, and config/ of the working directory. Warns when CP2 is on,
# and of what is set in vain.
#
#   scripts/worker/validate_feature_flags.sh [--config FILE ...]    files as `caf-worker serve` gets them
#
# Exit code: 0 valid, 1 invalid values, 2 not accessible (the program is missing or fails, a file cannot be read), 64
# there is no such option.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../lib.sh"

files=()
while (($# > 0)); do
    case "$1" in
    -h | --help) usage "${BASH_SOURCE[0]}" ;;
    --config=?*) files+=("$1") ;;
    --config)
        (($# > 1)) || no_such_option "${BASH_SOURCE[0]}" "$1 without a FILE"
        files+=("--config=$2")
        shift
        ;;
    *) no_such_option "${BASH_SOURCE[0]}" "$1" ;;
    esac
    shift
done
if ! worker="$(find_caf_worker)"; then
    say "[ERROR] caf-worker is not there: $caf_worker_advice"
    exit 2
fi
code=0
report="$("$worker" config flags "${files[@]}")" || code=$?
[[ -z "$report" ]] || say "$report"
# 78: the settings cannot be used, and the last line says why.
case "$code:${report##*$'\n'}" in
"0:[OK] "*) exit 0 ;;
"78:[ERROR] invalid values") exit 1 ;;
"78:[ERROR] the configuration cannot be read") exit 2 ;;
esac
say "[ERROR] $worker cannot tell its flags (it ended with $code): $caf_worker_advice"
exit 2
