#!/usr/bin/env bash
# Writes ci/requirements.lock anew: what ci/requirements.txt asks for and all that those need, each by exact version and
# the SHA-256 of its files, for Python 3.10 to 3.13 on Linux.
#
#   ci/lock.sh              keeps what is locked, where requirements allow it
#   ci/lock.sh --upgrade    the newest of everything that requirements allow
#
# Needs the network. PyTorch is not in it: it is installed by its exact version from where the user's pip looks, since its
# builds for CPUs and for each CUDA have other files and, those for CUDA, gigabytes of needs of their own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools=build/lock
[ -x "$tools/bin/uv" ] || { "${PYTHON:-python3}" -m venv "$tools" && "$tools/bin/pip" install --quiet uv==0.13.9; }
needs_of_torch=(filelock typing-extensions sympy networkx jinja2 fsspec)
{ grep -v '^torch==' ci/requirements.txt; printf '%s\n' "${needs_of_torch[@]}"; } >"$tools/wanted.in"
echo "# Written by ci/lock.sh from ci/requirements.txt; not to be edited." >"$tools/requirements.lock"
[ ! -e ci/requirements.lock ] || cp ci/requirements.lock "$tools/kept"
cp "$tools/kept" "$tools/new" 2>/dev/null || true
"$tools/bin/uv" pip compile --universal --python-version 3.10 --generate-hashes --no-annotate --no-header --quiet \
    --no-config --default-index https://pypi.org/simple "$@" "$tools/wanted.in" -o "$tools/new"
cat "$tools/new" >>"$tools/requirements.lock"
mv "$tools/requirements.lock" ci/requirements.lock
