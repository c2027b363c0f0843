#!/usr/bin/env bash
# Judges policy files as the worker itself does: prints [INFO], [OK] and [ERROR] lines for each.
#
#   scripts/worker/validate_config.sh [FILE...]    without a FILE the three in config/worker of the working directory
#
# Exit code: 0 all are valid; else that of the worst mistake, in this order: 1 bad JSON (or the file cannot be read),
# 2 structure mismatch, 3 missing required field (or missing file). 64: there is no such option. 69: the program itself
# is missing or fails.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../lib.sh"

# A file may be named like an option.
for argument in "$@"; do
    [[ ! -e "$argument" ]] || continue
    case "$argument" in
    -h | --help) usage "${BASH_SOURCE[0]}" ;;
    -*) no_such_option "${BASH_SOURCE[0]}" "$argument" ;;
    esac
done
if ! worker="$(find_caf_worker)"; then
    say "[ERROR] caf-worker is not there: $caf_worker_advice"
    exit 69
fi
code=0
report="$("$worker" config check --policy -- "$@")" || code=$?
[[ -z "$report" ]] || say "$report"
# 78: it has judged, and the last line names the worst.
case "$code:${report##*: }" in
"0:valid") exit 0 ;;
"78:bad JSON") exit 1 ;;
"78:structure mismatch") exit 2 ;;
"78:missing required field") exit 3 ;;
esac
say "[ERROR] $worker cannot check policy files (it ended with $code): $caf_worker_advice"
exit 69
