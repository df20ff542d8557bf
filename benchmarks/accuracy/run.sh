#!/usr/bin/env bash
# Time to accuracy on four hosts made here: accuracy by step (what is not in FOLDER yet), seconds by step at several
# rates, whole trainings at one, then the report.
#
#   sudo benchmarks/accuracy/run.sh [FOLDER]      default: build/accuracy
#   RATES="1gbit" ROUNDS=3 WHOLE=none run.sh      less of it; METHODS="float16 signum": only those
#
# On two otherwise idle cores: 20 minutes for all accuracy by step, 6 for the rest. Needs root and iproute2 (hosts.sh).
set -euo pipefail
out=$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../../build/accuracy}")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
hosts_sh=$PWD/benchmarks/hosts.sh
rates=${RATES:-100mbit 1gbit 10gbit} rounds=${ROUNDS:-5} whole=${WHOLE:-1gbit}
whole_methods=${METHODS:-float16 powersgd_4 signsgd signum}
export PATH=$PWD/.venv/bin:$PATH OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# shellcheck disable=SC2206 # several names
options=(--out "$out" ${METHODS:+--methods $METHODS})
mkdir -p "$out"
if [ -z "${METHODS:-}" ]; then # two at a time
    python -m benchmarks accuracy curves --out "$out" --methods float32 float16 signsgd signsgd_one_bit &
    python -m benchmarks accuracy curves --out "$out" --methods powersgd_1 powersgd_4 signum signum_one_bit
    wait
else
    python -m benchmarks accuracy curves "${options[@]}"
fi
mpirun -np 4 --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 \
    python -m benchmarks accuracy seconds --rounds "$rounds" "${options[@]}"
trap '"$hosts_sh" down' EXIT
for rate in $rates; do
    "$hosts_sh" down
    "$hosts_sh" up 4 "$rate"
    run=("$hosts_sh" run 4 -x OMP_NUM_THREADS -x PATH)
    "${run[@]}" python -m benchmarks accuracy seconds --rate "$rate" --rounds "$rounds" "${options[@]}"
    # shellcheck disable=SC2086 # several names
    [ "$rate" != "$whole" ] ||
        "${run[@]}" python -m benchmarks accuracy whole --rate "$rate" --out "$out" --methods $whole_methods
done
python -m benchmarks accuracy report --out "$out"
