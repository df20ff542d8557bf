#!/usr/bin/env bash
# Builds the kernels with AddressSanitizer and UndefinedBehaviorSanitizer, aside, and runs their tests with them; and
# races.cpp, which calls all that works on several threads, with ThreadSanitizer.
#
#   ci/sanitize.sh                                  all kernel sets, the tests that use kernels alone (kernel_tests.txt)
#   HOROVOD_SIGN_CASES=100000 ci/sanitize.sh        with more property tests
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$PWD/.venv/bin/python
out=build/sanitized
compiler=${CXX:-g++}
runtime=$("$compiler" -print-file-name=libasan.so)
[ -e "$runtime" ] || { echo "sanitize: $compiler has no libasan: install GCC's sanitizer runtime" >&2; exit 1; }

rm -rf "$out"
export CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
CXXFLAGS=$CFLAGS LDFLAGS=$CFLAGS "$python" setup.py --quiet build --build-base "$out" --build-lib "$out/lib"

# Not from the checkout, where the ordinary kernels are; and the interpreter itself is not built with the sanitizers.
sanitized() {
    env PYTHONSAFEPATH=1 PYTHONPATH="$PWD/$out/lib" LD_PRELOAD="$runtime" PYTHONMALLOC=malloc \
        ASAN_OPTIONS=detect_leaks=0:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1 "$@"
}

# A write past the end of an array must be caught, or what follows proves nothing.
overflow='
import numpy as np
from horovod_sign.algebra import native
assert "sanitized" in native.__file__, native.__file__
native.kernels().unpack_int8(np.zeros(16, np.uint8), None, 128, np.empty(127, np.int8))'
report=$(sanitized "$python" -c "$overflow" 2>&1) && { echo "sanitize: the sanitizers caught nothing" >&2; exit 1; }
grep -q "ERROR: AddressSanitizer" <<<"$report" || { echo "$report" >&2; exit 1; }

found=
for kernels in $("$python" -c 'from horovod_sign.algebra import supported; print(*supported())'); do
    echo "sanitize: kernel set $kernels"
    HOROVOD_SIGN_KERNELS=$kernels sanitized "$python" -m pytest -q -p no:cacheprovider @ci/kernel_tests.txt "$@" | tee "$out/tests"
    passed=$(grep -o "^[0-9]* passed" "$out/tests")
    found+=${found:+, }"${passed% passed} tests with the kernel set $kernels"
done

echo "sanitize: ThreadSanitizer"
"$python" -m pytest -q -p no:cacheprovider -rs tests/core/test_threads.py -k race | tee "$out/races"
grep -q "1 passed" "$out/races" || { echo "sanitize: ThreadSanitizer did not run" >&2; exit 1; }
"$python" -m benchmarks figures --record sanitize "$found, and races.cpp with ThreadSanitizer: clean"
