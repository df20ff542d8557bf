#!/usr/bin/env bash
# Measures all that the first table of docs/results.md is of, and draws its pictures, into build/results: five minutes on
# two cores. Then `python -m benchmarks figures --take build/results` puts both into docs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export OMP_NUM_THREADS=1
for script in toy_problem more_voters error_probability byzantine ties_and_zeros rates sorted_labels counterexamples \
    learning_rates; do
    .venv/bin/python "examples/reproduce/$script.py" --out "build/results/${script//_/-}.png"
done
ci/run 7 .venv/bin/python examples/reproduce/byzantine_ranks.py --out build/results/byzantine-ranks.png
