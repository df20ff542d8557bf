#!/usr/bin/env bash
# A long training on 4 ranks with random faults: replicas must end bit-identical, and memory must not grow.
#
#   ci/soak.sh [STEPS]      default 2000
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec ci/run "${RANKS:-4}" .venv/bin/python tests/soak.py "${1:-2000}"
