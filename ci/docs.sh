#!/usr/bin/env bash
# Builds the documentation's site into build/site, in an environment of its own; a dead link or anchor is an error.
#
#   ci/docs.sh                  build/site/index.html: open it, or put the folder on any web server
#   ci/docs.sh serve            at http://127.0.0.1:8000 (with search, which needs a server), built anew when a page changes
#
# Reads the package's source and does not import it: no framework, MPI or compiler is needed. PYTHON: any from 3.10 on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
environment=build/docs-venv
if ! cmp -s ci/docs-requirements.txt "$environment/requirements.txt"; then
    rm -rf "$environment"
    "${PYTHON:-python3}" -m venv "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check -r ci/docs-requirements.txt 2> "$environment/pip.log" || { cat "$environment/pip.log" >&2; exit 1; }
    cp ci/docs-requirements.txt "$environment/requirements.txt"
fi
export NO_MKDOCS_2_WARNING=1
case "${1:-build}" in
    build) exec "$environment/bin/mkdocs" build --strict --clean ;;
    serve) exec "$environment/bin/mkdocs" serve --strict ;;
    *) echo "usage: ci/docs.sh [build|serve]" >&2; exit 2 ;;
esac
