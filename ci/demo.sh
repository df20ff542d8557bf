#!/usr/bin/env bash
# Sets up if need be, then trains a CNN on Fashion-MNIST, 4 ranks, first by Horovod's float32 SGD, then by Signum votes.
# Arguments go to the training script, for example: ci/demo.sh --epochs 1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ci/setup.sh
for optimizer in sgd signum; do
    ci/run 4 .venv/bin/python examples/pytorch/pytorch_fashion_mnist.py --optimizer "$optimizer" "$@"
done
