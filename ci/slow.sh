#!/usr/bin/env bash
# All that takes too long for every change, one after the other, with the time of each: run it before a release, and
# then `python -m benchmarks figures --take build/benchmarks`, which writes docs/robustness.md's lines on it.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
failed=()

stage() { # NAME COMMAND...
    local name=$1 start=$SECONDS
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    "$@" || failed+=("$name")
    printf '== %s: %d s\n' "$name" $((SECONDS - start))
}

ci/setup.sh || exit
stage "property cases" env HOROVOD_SIGN_CASES=100000 .venv/bin/python -m pytest -q tests/core/test_properties.py
[ ${#failed[@]} = 0 ] && .venv/bin/python -m benchmarks figures --record properties "100,000 cases, none failed"
stage "sanitizers" ci/sanitize.sh
stage "MPICH" ci/mpich.sh
stage "soak" ci/soak.sh
stage "mutants" ci/mutants.sh
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
echo "all passed in $SECONDS s"
