#!/usr/bin/env bash
# Sets up if need be, then trains a CNN on Fashion-MNIST, 4 ranks, first by Horovod's float32 SGD, then by Signum votes,
# and says what that has shown: a table, a sentence, a picture in build/demo.
#
#   ci/demo.sh                     as root, where iproute2 is there: on 4 hosts with links of 100 Mbit/s that it makes on
#                                  this machine (network namespaces) and removes again; else over shared memory
#   LINKS=none ci/demo.sh          over shared memory in any case; LINKS=1000: links of 1 Gbit/s
#   ci/demo.sh --epochs 1          arguments go to the training script
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ci/setup.sh
out=build/demo links=${LINKS:-100} hosts=benchmarks/hosts.sh
mkdir -p "$out"
run=(ci/run 4)
if [ "$links" != none ]; then
    if [ "$(id -u)" = 0 ] && command -v ip >/dev/null && command -v tc >/dev/null && "$hosts" up 4 "${links}mbit" 2>"$out/hosts.log"; then
        trap '"$hosts" down' EXIT
        export PATH=$PWD/.venv/bin:$PATH OMP_NUM_THREADS=1
        run=("$hosts" run 4 -x OMP_NUM_THREADS -x PATH)
        echo "4 hosts with links of $links Mbit/s, on this machine:" >&2
    else
        [ ! -e "$out/hosts.log" ] || "$hosts" down 2>/dev/null || true
        echo "No hosts with slow links here (that needs root, ip and tc): over shared memory, where votes save no time." >&2
        links=none
    fi
fi
for optimizer in sgd signum; do
    "${run[@]}" .venv/bin/python examples/pytorch/pytorch_fashion_mnist.py --optimizer "$optimizer" \
        --record "$out/$optimizer.jsonl" --evaluate-every 58 --log-interval 100 "$@"
done
.venv/bin/python examples/demo.py "$out" $([ "$links" = none ] || echo --links "$links")
