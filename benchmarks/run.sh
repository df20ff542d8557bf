#!/usr/bin/env bash
# Measures the vote and the training step, side by side with Horovod's own and with other ways, on hosts made here.
#
#   sudo benchmarks/run.sh                           hosts 2 3 4 8; links of 1gbit, 10gbit; and shared memory
#   HOSTS="4" RATES="1gbit" ROUNDS=5 run.sh OUTPUT_FOLDER     less of it
#
# Results go to OUTPUT_FOLDER (default: build/benchmarks): results.jsonl, a PNG for each table, and the tables as text;
# small.jsonl for small models, kernels.jsonl, advise.jsonl (what advise says on four hosts, beside steps);
# scale's fit and predictions from them: scale.txt, scale.json, scale.jsonl, scale.png, fit.png.
# Then `python -m benchmarks figures --take OUTPUT_FOLDER` puts them into docs/figures, and into the pages.
# On a real cluster run the same programs there, with your own mpirun, and then python -m benchmarks plot:
#   mpirun -H host1,host2,host3,host4 python -m benchmarks step --rate 25gbit --json results.jsonl
#
# Needs root and iproute2 for the hosts (see hosts.sh).
set -euo pipefail
out=$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../build/benchmarks}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
hosts_sh=$PWD/benchmarks/hosts.sh
hosts=${HOSTS:-2 3 4 8} rates=${RATES:-1gbit 10gbit} rounds=${ROUNDS:-7} coordinates=${COORDINATES:-1e5 1e6 25.6e6}
export PATH=$PWD/.venv/bin:$PATH OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
mkdir -p "$out"
results=$out/results.jsonl
rm -f "$out"/{results,small,kernels,advise,scale}.jsonl

measure() { # LAUNCHER... -- RATE
    local launcher=()
    while [ "$1" != -- ]; do launcher+=("$1"); shift; done
    # shellcheck disable=SC2086 # several numbers
    "${launcher[@]}" python -m benchmarks vote --rate "$2" --rounds "$rounds" --coordinates $coordinates --json "$results"
    "${launcher[@]}" python -m benchmarks step --rate "$2" --rounds "$rounds" --json "$results"
    # As with a GPU, whose backward leaves the cores to communication.
    "${launcher[@]}" python -m benchmarks step --rate "$2" --rounds "$rounds" --pause-ms 200 --json "$results"
}

compare_with_advice() { # LAUNCHER... -- RATE: what advise predicts, what is, and what advise predicts again
    local launcher=() methods="float32 float16 signsgd_counts signsgd_exchange signsgd_one_bit"
    while [ "$1" != -- ]; do launcher+=("$1"); shift; done
    local advise=(python -m benchmarks advise --parameters 25.6e6 --rate "$2" --json "$out/advise.jsonl")
    "${launcher[@]}" "${advise[@]}"
    # shellcheck disable=SC2086 # several methods
    "${launcher[@]}" python -m benchmarks step --rate "$2" --rounds "$rounds" --methods $methods --json "$out/advise.jsonl"
    "${launcher[@]}" "${advise[@]}"
}

memory=(mpirun -np 2 --oversubscribe --bind-to none --mca mpi_yield_when_idle 1)
{
    for threads in 1 2; do
        python -m benchmarks kernels --threads $threads --json "$out/kernels.jsonl"
    done
    for few in 1e5 1e6; do # small models
        "${memory[@]}" python -m benchmarks step --rate "shared memory" --rounds 200 --coordinates $few \
            --methods float32 signsgd signsgd_exchange signsgd_counts --json "$out/small.jsonl"
    done
    measure "${memory[@]}" -- "shared memory"
    if [ "$(id -u)" = 0 ] && command -v ip >/dev/null && command -v tc >/dev/null; then
        trap '"$hosts_sh" down' EXIT
        for rate in $rates; do
            for n in $hosts; do
                "$hosts_sh" down
                "$hosts_sh" up "$n" "$rate"
                measure "$hosts_sh" run "$n" -x OMP_NUM_THREADS -- "$rate"
                [ "$n" != 4 ] || compare_with_advice "$hosts_sh" run "$n" -x OMP_NUM_THREADS -- "$rate"
            done
        done
    else
        echo "no hosts with shaped links: that needs root, ip and tc (on Debian: apt-get install iproute2)" >&2
    fi
} | tee "$out/tables.txt"
python -m benchmarks plot "$results"
# What the results say of larger clusters; fewer hosts or rates than by default may be too few to fit.
python -m benchmarks scale "$results" --cores "$(nproc)" | tee "$out/scale.txt" || echo "no predictions" >&2
