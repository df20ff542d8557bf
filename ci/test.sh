#!/usr/bin/env bash
# Sets up if need be, then checks style and runs the tests, on one process and on ranks under mpirun.
#
#   ci/test.sh                  everything, on two cores at once
#   ci/test.sh --quick          what a change most often breaks: at most two minutes
#   ci/test.sh ARGUMENTS        pytest's, for example: ci/test.sh tests/torch -k pieces --ranks 3 -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ci/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
both_cores=(-n 2)
case "${1:-}" in
    "") set -- "${both_cores[@]}" --durations=20 ;;
    --quick) set -- "${both_cores[@]}" "$@" ;;
esac
exec .venv/bin/python -m pytest "$@"
