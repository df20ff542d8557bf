#!/usr/bin/env bash
# Makes .venv: pinned frameworks and MPI, Horovod (built once, kept in a cache), this package, real training data;
# and .venv-mpich, in which majority_vote is tested under another MPI.
#
#   ci/setup.sh                 again: a few seconds
#   PYTHON=/path/to/python3.12 HOROVOD_SIGN_CACHE=/path ci/setup.sh
#
# Needs Python 3.10 to 3.13 with venv (3.11 is what all tests run with, and is taken if it is there), a C++17 compiler, and
# the network the first time. No root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export HOROVOD_SIGN_CACHE=${HOROVOD_SIGN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/horovod_sign}
say() { printf '[setup %4d s] %s\n' "$SECONDS" "$*" >&2; }
die() { say "stopped: $*"; exit 1; }
log=.venv/setup.log  # what pip and compilers say, of this run

# `stage WHAT COMMAND...` runs COMMAND and prints one line, with the seconds that it took. What it says goes to the log;
# its first errors are shown if it fails.
stage() {
    local what=$1 start=$SECONDS status=0 from
    shift
    from=$(wc -l <"$log")
    printf '[setup] %s ... ' "$what" >&2
    if [ -t 2 ]; then show_last_line "$what" "$from" & fi
    "$@" >>"$log" 2>&1 || status=$?
    stop_showing
    [ -t 2 ] && printf '\r\033[K[setup] %s ... ' "$what" >&2
    if [ $status = 0 ]; then
        printf '%d s\n' $((SECONDS - start)) >&2
    else
        printf 'failed after %d s; all that was said: %s\n' $((SECONDS - start)) "$PWD/$log" >&2
        tail -n +$((from + 1)) "$log" | grep -E '(error|ERROR): ' | head -n 5 | cut -c 1-300 | sed 's/^ */    /' >&2 || true
    fi
    return $status
}

show_last_line() { # in a terminal: seconds, and what pip is at
    local start=$SECONDS last
    while sleep 1; do
        last=$(tail -n +$(($2 + 1)) "$log" | sed -nE 's/^ *((Collecting|Downloading|Building|Installing) .*)/\1/p' | tail -n 1)
        printf '\r\033[K[setup] %s ... %d s  %.60s' "$1" $((SECONDS - start)) "$last" >&2
    done
}

stop_showing() {
    local children
    children=$(jobs -p)
    [ -z "$children" ] || { kill $children; wait $children || true; } 2>/dev/null
}
trap stop_showing EXIT

# `once NAME FILES... -- COMMAND` runs COMMAND unless it has already succeeded in this .venv with FILES as they are.
once() {
    local name=$1 files=() stamp=.venv/.setup-$1 now
    shift
    while [ "$1" != -- ]; do files+=("$1"); shift; done
    shift
    now=$(sha256sum "${files[@]}")
    [ "$(cat "$stamp" 2>/dev/null)" = "$now" ] && return
    "$@"
    printf '%s\n' "$now" >"$stamp"
}

is_right() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }
version_of() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null; }

find_python() {
    local candidate needed="Python 3.10 to 3.13 is needed (ci/requirements.lock is for these)"
    if [ -n "${PYTHON:-}" ]; then
        is_right "$PYTHON" || die "$needed, and PYTHON=$PYTHON is none" \
            "($("$PYTHON" --version 2>&1 || true)): leave PYTHON out, or name another"
        echo "$PYTHON"
        return
    fi
    for candidate in python3.11 python3 python3.12 python3.13 python3.10; do
        is_right "$candidate" && { echo "$candidate"; return; }
    done
    die "$needed, and neither python3 (here: $(python3 --version 2>&1 || true)) nor another on PATH is one: install it, or" \
        "name it by PYTHON=..."
}

install() { pip install --disable-pip-version-check --progress-bar off "$@"; }

install_requirements() {
    local advice="(without a network, give pip a folder of wheels by PIP_FIND_LINKS)"
    stage "MPI, TensorFlow and tools into .venv" install --require-hashes --no-deps -r ci/requirements.lock ||
        die "pip could not install ci/requirements.lock $advice"
    # By version alone: which build of it (for CPUs, for which CUDA) is a matter of where pip looks.
    stage "PyTorch into .venv" install "$(grep '^torch==' ci/requirements.txt)" || die "pip could not install PyTorch $advice"
}

install_horovod() {
    local wheel
    wheel=$(ci/horovod_wheel.sh) || die "Horovod could not be built"
    stage "Horovod into .venv" install --no-deps --force-reinstall "$wheel" || die "pip could not install $wheel"
    stage "importing Horovod" python -c 'import horovod.torch as hvd; assert hvd.mpi_built() and hvd.gloo_built()' ||
        die "the Horovod in $wheel does not import: remove that file and run again"
}

install_package() {
    stage "kernels and horovod_sign into .venv" install -v --no-build-isolation --no-deps --editable . ||
        die "horovod_sign could not be built"
}

for tool in "${CXX:-c++}" make sha256sum tar; do
    command -v "$tool" >/dev/null || die "'$tool' is needed and not there (on Debian or Ubuntu: apt-get install build-essential)"
done
if [ -n "${PYTHON:-}" ]; then
    find_python >/dev/null || exit
    [ "$(version_of .venv/bin/python)" = "$(version_of "$PYTHON")" ] || rm -rf .venv .venv-mpich
fi
if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c '' 2>/dev/null; then
    python=$(find_python)
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv ||
        die "'$python -m venv' failed (on Debian or Ubuntu: apt-get install $(basename "$python")-venv)"
fi
export VIRTUAL_ENV=$PWD/.venv PATH=$PWD/.venv/bin:$PATH
unset PYTHONHOME
: >"$log"

once requirements ci/requirements.lock ci/requirements.txt -- install_requirements
once horovod ci/requirements.lock ci/requirements.txt ci/horovod_wheel.sh horovod_sign/building/horovod_cmake.py -- install_horovod
once package setup.py pyproject.toml csrc/* -- install_package
ci/fashion_mnist.sh
stage "MPICH into .venv-mpich" ci/mpich.sh --setup || say "without MPICH, its tests will be skipped"
say "ready: .venv"
