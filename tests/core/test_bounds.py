"""Kernels touch nothing after the end of what they are given: there, memory ends. In a process that may crash."""

import ctypes
import mmap
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from horovod_sign.algebra import native

LENGTHS = [*range(1, 194), 513, 1001]
PROGRAM = Path(__file__)


class Ending:
    """Arrays whose last byte is the last of a page, before one that cannot be touched."""

    def __init__(self, pages: int = 16):
        self._memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._size = pages * mmap.PAGESIZE
        mprotect = ctypes.CDLL(None, use_errno=True).mprotect
        border = ctypes.c_void_p(self._bytes.ctypes.data + self._size)
        assert mprotect(border, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0

    def __call__(self, array) -> np.ndarray:
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        place = self._bytes[self._size - flat.size : self._size]
        place[:] = flat
        return place


def operations(kernels, n: int):
    """Calls of all kernels on n coordinates, each with every buffer at the end of memory of its own, one by one."""
    a, b, c, d = (Ending() for _ in range(4))
    random = np.random.default_rng(n)
    bits = [random.integers(0, 256, (n + 7) // 8, np.uint8) for _ in range(4)]
    words = (n + 63) // 64 * 8
    whole = np.zeros(words, np.uint8)
    one, two, three, four = a(bits[0]), b(bits[1]), c(bits[2]), d(bits[3])
    yield "agreement", lambda: kernels.agreement(one, two, three, four, n)
    yield "all_ones", lambda: kernels.all_ones(a(np.full(n, 0xFF, np.uint8)), n)
    yield "unpack_int8", lambda: kernels.unpack_int8(a(bits[0]), b(bits[1]), n, c(np.zeros(n, np.int8)))
    yield "tally", lambda: kernels.tally([a(bits[0]), b(bits[1])], [c(bits[2]), None], len(bits[0]), d(bits[3]), one)
    yield "tally of many", lambda: kernels.tally([a(bits[0])] * 20, None, len(bits[0]), c(bits[1]), d(bits[2]))
    for width in (2, 4, 8, 16):
        fields = np.zeros((n * width + 7) // 8, np.uint8)
        yield f"encode {width}", lambda w=width, f=fields: kernels.encode_counts(w, a(bits[0]), b(bits[1]), n, c(f))
        yield f"decode {width}", lambda w=width, f=fields: kernels.decode_counts(w, a(f), 1, n, b(whole), c(whole))
    for dtype in native.DTYPES:
        x = np.zeros(n * native.ITEM_BYTES[dtype], np.uint8)
        m = np.zeros(4 * n, np.uint8)

        def segments(x=x, place=a):
            return native.Segments([(place(x), n)])

        for mode in (native.SIGNBIT, native.ABSTAIN, native.ONEBIT):
            yield f"pack {dtype}", lambda t=dtype, o=mode, s=segments: kernels.pack(t, o, s(), b(whole), c(whole))
            yield (
                f"interpolate_pack {dtype}",
                lambda t=dtype, o=mode, s=segments, m=m: kernels.interpolate_pack(
                    t, o, s(), [d(m)], 0.9, 0.9, b(whole), c(whole)
                ),
            )
        yield f"unpack {dtype}", lambda t=dtype, s=segments: kernels.unpack(t, s(), b(whole), c(whole))
        yield f"apply {dtype}", lambda t=dtype, s=segments: kernels.apply(t, s(), b(whole), c(whole), 0.1, 0.1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect as on Linux")
@pytest.mark.parametrize("name", native.supported())
def test_nothing_after_the_end_is_touched(name):
    done = subprocess.run([sys.executable, PROGRAM, name], capture_output=True, text=True, timeout=100, check=False)
    crashed = done.returncode == -signal.SIGSEGV
    assert done.returncode == 0, f"{'touched by' if crashed else 'failed:'} {done.stdout[-300:]}{done.stderr[-2000:]}"


def main(name: str):
    """All operations by one kernel set; the last line printed is what crashed."""
    for n in LENGTHS:
        for what, operation in operations(native.Kernels(name), n):
            print(what, n, flush=True)
            operation()


if __name__ == "__main__":
    main(sys.argv[1])
