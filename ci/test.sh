#!/usr/bin/env bash
# Sets up if need be, then checks style and types, and runs the tests, on one process and on ranks under mpirun.
#
#   ci/test.sh                  everything, on two cores at once
#   ci/test.sh --quick          what a change most often breaks: at most two minutes
#   ci/test.sh --lint           style and types alone
#   ci/test.sh ARGUMENTS        pytest's, for example: ci/test.sh tests/torch -k pieces --ranks 3 -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ci/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/python -m mypy
[ "${1:-}" != --lint ] || exit 0
both_cores=(-n 3)  # more than cores, since ranks also wait: for each other, for time limits, for Gloo
case "${1:-}" in
    "") everything=yes; set -- "${both_cores[@]}" --durations=20 ;;
    --quick) set -- "${both_cores[@]}" "$@" ;;
esac
[ -n "${everything:-}" ] || exec .venv/bin/python -m pytest "$@"
.venv/bin/python -m pytest "$@" && exit
# Tests on ranks have time limits, and a busy machine can be too slow for them: what failed runs once more, by itself,
# and must pass then. Both summaries stay in sight.
echo "== once more, one after the other: the tests that failed above"
exec .venv/bin/python -m pytest --last-failed --last-failed-no-failures none
