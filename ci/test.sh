#!/usr/bin/env bash
# Sets up if need be, then runs every check: style, tests on one process, tests under mpirun at several rank counts.
# Arguments go to pytest, for example: ci/test.sh tests/core -k pack
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ci/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest --durations=20 "$@"
