#!/usr/bin/env bash
# Makes each small mistake of tests/mutants, one at a time in a copy of the checkout, and runs the tests named beside it.
#
#   ci/mutants.sh                   all, two at a time; exit status 1 if one survives its tests
#   ci/mutants.sh torch/momenta     those whose path contains one of the arguments
#   ci/mutants.sh --check           only whether each still applies
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec .venv/bin/python tests/mutants/run.py "$@"
