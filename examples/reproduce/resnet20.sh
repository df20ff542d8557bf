#!/usr/bin/env bash
# All of ResNet-20's curves on small Fashion-MNIST, 1, 2 and 4 ranks, then the page and the picture: resnet20.sh [FOLDER]
#
# What is in FOLDER (default: build/resnet20) already is not done again. 15 minutes on two otherwise idle cores.
set -euo pipefail
out=$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../../build/resnet20}")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
for ranks in 1 2 4; do
    ci/run "$ranks" .venv/bin/python examples/reproduce/resnet20_curves.py --out "$out"
done
ci/run 1 .venv/bin/python examples/reproduce/resnet20_curves.py --out "$out" --framework keras --seeds 1
.venv/bin/python examples/reproduce/resnet20_curves.py --out "$out" --draw
