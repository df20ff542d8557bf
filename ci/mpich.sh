#!/usr/bin/env bash
# Runs the tests of majority_vote under MPICH, in a second virtual environment (.venv has Open MPI, one MPI is enough).
#
#   ci/mpich.sh [RANKS...]      default: 1 2 3 4
#   ci/mpich.sh --setup         only makes .venv-mpich: ten seconds the first time, none after that
#
# Needs .venv (ci/setup.sh) for Python and the built kernels; neither Horovod nor a framework is installed or needed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
environment=$PWD/.venv-mpich seconds=${SECONDS_PER_LAUNCH:-240}
packages=(mpich==5.0.2 mpi4py==4.1.2 numpy ml_dtypes "pytest==9.*")

set_up() {
    local stamp=$environment/.setup wanted="$PWD ${packages[*]}"
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    [ -x .venv/bin/python ] || { echo "mpich: there is no .venv yet: run ci/setup.sh" >&2; exit 1; }
    .venv/bin/python -m venv --clear "$environment"
    "$environment/bin/pip" install --disable-pip-version-check --quiet "${packages[@]}"
    # The checkout itself, whose kernels ci/setup.sh has built.
    "$environment/bin/python" - "$PWD" <<<'import pathlib, sys, sysconfig
pathlib.Path(sysconfig.get_path("purelib"), "horovod_sign.pth").write_text(sys.argv[1] + "\n")'
    printf '%s' "$wanted" >"$stamp"
}

launch() { # RANKS
    # More ranks than cores are allowed, so ranks that wait give way.
    timeout --kill-after=5 "$seconds" env OMP_NUM_THREADS=1 \
        MPIR_CVAR_ENABLE_HEAVY_YIELD=1 MPIR_CVAR_POLLS_BEFORE_YIELD=10 \
        "$environment/bin/python" -m pytest -q -x -p no:cacheprovider tests/mpi/test_majority_vote.py \
        --mpirun "$environment/bin/mpiexec -n" --ranks "$1"
}

set_up
[ "${1:-}" = --setup ] && exit
[ $# -gt 0 ] || set -- 1 2 3 4
for ranks; do
    echo "majority_vote under MPICH on $ranks ranks"
    launch "$ranks" || { echo "mpich: failed on $ranks ranks, or took more than $seconds s" >&2; exit 1; }
done
