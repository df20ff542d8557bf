#!/usr/bin/env bash
# Runs the kernels' tests (kernel_tests.txt) with the wheel for 64-bit ARM, without such a machine: qemu emulates one for a Python of
# Debian's. It shows whether results are right, not how fast they come, and no MPI and no framework is there.
#
#   MACHINES=aarch64 ci/packages.sh && ci/emulate.sh       any options of pytest
#
# Needs Debian's apt and dpkg, and the network; all that it takes stays in build/emulated.
set -euo pipefail
export HOROVOD_SIGN_CASES=${HOROVOD_SIGN_CASES:-40} # of the property tests, which are slow there
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$PWD/build/emulated python=$PWD/.venv/bin/python wheel=$(ls dist/*manylinux*_aarch64.whl)

get() { # PACKAGE...: wheels for that machine, as pip there would choose them
    "$python" -m pip install --quiet --no-compile --upgrade --target "$out/site" --only-binary :all: --python-version 3.11 \
        --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 "$@"
}

if [ ! -e "$out/made" ]; then
    rm -rf "$out"
    mkdir -p "$out"/{host,lists/partial,cache/archives/partial}
    arm=(-o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root -o Dir::State::status=/dev/null
        -o Dir::State::lists="$out/lists" -o Dir::Cache="$out/cache")
    apt-get -qq "${arm[@]}" update
    apt-get -qq "${arm[@]}" --yes --no-install-recommends --download-only install python3.11 libstdc++6
    for package in "$out"/cache/archives/*.deb; do dpkg -x "$package" "$out/root"; done
    (cd "$out" && apt-get -qq -o APT::Sandbox::User=root download qemu-user-static && dpkg -x qemu-user-static_*.deb host)
    get numpy ml_dtypes pytest hypothesis
    # It is sys.executable too, so what tests start as Python is emulated as well.
    cat >"$out/python" <<EOF
#!/bin/sh
PYTHONHOME=$out/root/usr exec $out/host/usr/bin/qemu-aarch64-static -0 "\$0" -L $out/root $out/root/usr/bin/python3.11 "\$@"
EOF
    chmod +x "$out/python"
    touch "$out/made"
fi
get --no-deps "$wheel"

# Not from the checkout, where this machine's kernels are; and without tests/conftest.py, which wants MPI.
export PYTHONSAFEPATH=1 PYTHONPATH=$out/site PYTHONDONTWRITEBYTECODE=1
"$out/python" -c 'import platform
from horovod_sign.algebra import kernels, native
assert "emulated" in native.__file__, native.__file__
assert kernels().name == "neon", kernels()
print(platform.machine(), platform.python_version(), "kernels in use:", kernels().name)'
# races.cpp is compiled for this machine, not for that one.
"$out/python" -m pytest -q -p no:cacheprovider --noconftest --override-ini addopts=--import-mode=importlib \
    --deselect tests/core/test_threads.py::test_no_race_between_threads @ci/kernel_tests.txt "$@"
