"""Ballots from numbers and numbers from ballots, in every kernel set, against the NumPy oracle."""

import contextlib
import os
import platform
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from horovod_sign import algebra
from horovod_sign.algebra import native, reference

DTYPES = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
MODES = [native.SIGNBIT, native.ABSTAIN, native.ONEBIT]
GUARD = 0xA5

each_set = pytest.mark.parametrize("kernels", [native.Kernels(name) for name in native.supported()], ids=repr)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="needs Linux")
def test_sets_are_those_that_this_processor_runs():
    if platform.machine() == "aarch64":
        assert native.supported() == ("neon", "scalar")
        return
    with open("/proc/cpuinfo") as file:
        flags = next((line.split() for line in file if line.startswith("flags")), None)
    if flags is None:
        pytest.skip("no x86 processor")
    needed = {"avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl"), "avx2": ("avx2", "f16c", "popcnt")}
    assert native.supported() == (*[name for name, all_ in needed.items() if set(all_) <= set(flags)], "scalar")


def edge_values(dtype):
    """Numbers whose class is easily got wrong, of both signs: zero, subnormals, the largest, infinity, NaNs."""
    word = np.dtype(f"u{dtype.itemsize}")
    infinity = reference._INFINITY[dtype.name]
    last = 1 << (8 * dtype.itemsize - 1)
    fraction = infinity & -infinity  # the lowest bit of the exponent
    quiet = fraction >> 1
    magnitudes = [0, 1, 2, fraction - 1, fraction, fraction + 1, infinity - 1, infinity]
    magnitudes += [infinity + 1, infinity | quiet, infinity | quiet | 5, last - 1]
    return np.array([s | m for m in magnitudes for s in (0, last)], word).view(dtype)


def numbers(rng, n, dtype):
    """n random numbers, about a third of them edge values."""
    x = rng.standard_normal(n).astype(dtype)
    edges = edge_values(dtype)
    return np.where(rng.random(n) < 0.3, edges[rng.integers(0, len(edges), n)], x)


class Placed:
    """A copy of an array at a given distance from a 64-byte border, between guard bytes."""

    def __init__(self, array, offset=0):
        raw = np.full(array.nbytes + 256 + offset, GUARD, np.uint8)
        start = -raw.ctypes.data % 64 + 64 + offset
        self.raw, self.dtype = raw, array.dtype
        self.bytes = raw[start : start + array.nbytes]
        self.bytes[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.address = raw.ctypes.data + start
        self.outside = np.ones(raw.size, bool)
        self.outside[start : start + array.nbytes] = False

    def read(self):
        """The array as it is now; fails if anything around it was written."""
        assert (self.raw[self.outside] == GUARD).all(), "written outside the array"
        return self.bytes.copy().view(self.dtype)


def garbage(nbytes):
    return np.full(nbytes, 0x3C, np.uint8)


def check_pack(kernels, x, mode, offset=0, plane_offset=0):
    """Packs x at a place, and compares planes and counts with the oracle."""
    source = Placed(x, offset)
    segments = native.Segments([(source.address, x.size)])
    sign, nonzero = (Placed(garbage(segments.plane_bytes), plane_offset) for _ in range(2))
    counts = kernels.pack(x.dtype, mode, segments, sign.address, nonzero.address)
    expected_sign, expected_nonzero, zeros, nans = reference.pack(x, mode)
    np.testing.assert_array_equal(sign.read(), expected_sign)
    if mode == native.ABSTAIN:
        np.testing.assert_array_equal(nonzero.read(), expected_nonzero)
        assert counts == (zeros, nans)
    else:
        assert (nonzero.read() == 0x3C).all()


@each_set
@each_dtype
def test_pack_lengths(kernels, dtype):
    rng = np.random.default_rng(1)
    for n in [*range(258), 1001, 20011]:
        x = numbers(rng, n, dtype)
        for mode in MODES:
            check_pack(kernels, x, mode, offset=n % 64)


@each_set
@each_dtype
def test_pack_alignments(kernels, dtype):
    rng = np.random.default_rng(2)
    for offset in range(64):
        for n in (1, 64, 131):
            check_pack(kernels, numbers(rng, n, dtype), native.ABSTAIN, offset, plane_offset=(offset * 7) % 64)


@each_set
@each_dtype
def test_pack_without_abstentions(kernels, dtype):
    """The branch for words in which everyone votes, and in which nobody does."""
    for n in (64, 65, 300):
        for x in (np.ones(n), -np.ones(n), np.zeros(n), np.full(n, np.nan)):
            check_pack(kernels, x.astype(dtype), native.ABSTAIN)


def test_reference_is_numpy_sign():
    """The oracle itself: votes are numpy.sign, with 0 for NaN; the one-bit mode says minus just where x < 0."""
    for dtype in (np.float16, np.float32, np.float64):
        x = edge_values(np.dtype(dtype))
        sign, nonzero, zeros, nans = reference.pack(x, native.ABSTAIN)
        with np.errstate(invalid="ignore"):
            expected = np.nan_to_num(np.sign(x), nan=0.0)
        np.testing.assert_array_equal(reference.votes(sign, nonzero, x.size), expected)
        assert (zeros, nans) == ((x == 0).sum(), np.isnan(x).sum())
        sign, *_ = reference.pack(x, native.ONEBIT)
        np.testing.assert_array_equal(reference.bools(sign, x.size), x < 0)
        sign, *_ = reference.pack(x, native.SIGNBIT)
        np.testing.assert_array_equal(reference.bools(sign, x.size), np.signbit(x))


@each_set
@each_dtype
def test_pack_many_tensors(kernels, dtype):
    rng = np.random.default_rng(3)
    tensors = [numbers(rng, n, dtype) for n in (0, 1, 64, 63, 200, 0, 65, 1000)]
    places = [Placed(x, 3 * i) for i, x in enumerate(tensors)]
    segments = native.Segments([(p.address, x.size) for p, x in zip(places, tensors, strict=True)])
    assert segments.coordinates == sum(x.size for x in tensors)
    sign, nonzero = (Placed(garbage(segments.plane_bytes)) for _ in range(2))
    counts = kernels.pack(dtype, native.ABSTAIN, segments, sign.address, nonzero.address)
    expected = [reference.pack(x, native.ABSTAIN) for x in tensors]
    np.testing.assert_array_equal(sign.read(), np.concatenate([e[0] for e in expected]))
    np.testing.assert_array_equal(nonzero.read(), np.concatenate([e[1] for e in expected]))
    assert counts == (sum(e[2] for e in expected), sum(e[3] for e in expected))


@contextlib.contextmanager
def denormals_are_zero():
    """Flush-to-zero and denormals-are-zero on in this thread."""
    torch = pytest.importorskip("torch")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@each_set
@each_dtype
@pytest.mark.parametrize("mode", MODES)
def test_subnormals_vote_whatever_the_floating_point_mode(kernels, dtype, mode):
    x = np.tile(edge_values(dtype), 7)
    expected_sign, expected_nonzero, *expected_counts = reference.pack(x, mode)
    segments = native.Segments([(x, x.size)])
    sign, nonzero = garbage(segments.plane_bytes), garbage(segments.plane_bytes)
    with denormals_are_zero():
        counts = kernels.pack(dtype, mode, segments, sign, nonzero)
    np.testing.assert_array_equal(sign, expected_sign)
    if mode == native.ABSTAIN:
        np.testing.assert_array_equal(nonzero, expected_nonzero)
        assert counts == tuple(expected_counts)


@each_set
def test_unpack_int8(kernels):
    rng = np.random.default_rng(4)
    for n in [*range(258), 5003]:
        sign, nonzero = (Placed(rng.integers(0, 256, (n + 7) // 8, np.uint8), n % 64) for _ in range(2))
        for votes in (nonzero, None):
            out = Placed(np.full(n, 99, np.int8), (n * 5) % 64)
            kernels.unpack_int8(sign.address, votes and votes.address, n, out.address)
            expected = reference.votes(sign.read(), votes and votes.read(), n)
            np.testing.assert_array_equal(out.read(), expected)


@each_set
@each_dtype
def test_unpack(kernels, dtype):
    rng = np.random.default_rng(5)
    for n in [*range(0, 258, 3), 64, 128, 5003]:
        size = algebra.plane_bytes(n)
        sign, nonzero = rng.integers(0, 256, size, np.uint8), rng.integers(0, 256, size, np.uint8)
        for votes in (nonzero, None):
            out = Placed(numbers(rng, n, dtype), n % 64)
            kernels.unpack(dtype, native.Segments([(out.address, n)]), sign, votes)
            expected = reference.unpack(sign, votes, n, dtype)
            np.testing.assert_array_equal(reference.bits_of(out.read()), reference.bits_of(expected))


@each_set
def test_all_ones(kernels):
    for n in [*range(140), 1000]:
        plane = Placed(np.full(n, 0xFF, np.uint8), n % 64)
        assert kernels.all_ones(plane.address, n)
        for i in {0, n // 2, n - 1} & set(range(n)):
            plane.bytes[i] = 0xFF ^ (1 << (i % 8))
            assert not kernels.all_ones(plane.address, n)
            plane.bytes[i] = 0xFF


@each_set
def test_agreement(kernels):
    rng = np.random.default_rng(6)
    for n in [*range(200), 5003]:
        planes = [rng.integers(0, 256, (n + 7) // 8, np.uint8) for _ in range(4)]
        for absent in ((), (1,), (3,), (1, 3)):
            a = [None if i in absent else p for i, p in enumerate(planes)]
            assert kernels.agreement(*a, n) == reference.agreement(*a, n)


@each_dtype
def test_pack_signs_shapes_and_strides(dtype):
    rng = np.random.default_rng(7)
    x = numbers(rng, 7 * 9 * 5, dtype).reshape(7, 9, 5)
    for view in (x, x.T, x[::2], x[:, ::-1, 1:], x[0, 0, 0], x[:0], np.asfortranarray(x)):
        expected = np.packbits(reference.classify(np.ascontiguousarray(view).reshape(-1))[0], bitorder="little")
        packed = algebra.pack_signs(view)
        assert packed.dtype == np.uint8
        np.testing.assert_array_equal(packed, expected)
        signs = algebra.unpack_signs(packed, view.size)
        assert signs.dtype == np.int8
        np.testing.assert_array_equal(
            signs, 1 - 2 * np.unpackbits(expected, count=view.size, bitorder="little").astype(int)
        )


def test_pack_signs_of_other_byte_order():
    x = np.array([1.0, -2.0, 3.0, -0.0])
    np.testing.assert_array_equal(algebra.pack_signs(x.astype(x.dtype.newbyteorder())), [0b1010])


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "bool", "complex64", "object", "U3"])
def test_pack_signs_refuses_other_dtypes(dtype):
    with pytest.raises(TypeError, match="float16, bfloat16, float32 and float64"):
        algebra.pack_signs(np.zeros(3, dtype))


def test_unpack_signs_refuses_nonsense():
    with pytest.raises(ValueError, match="too short"):
        algebra.unpack_signs(np.zeros(2, np.uint8), 17)
    with pytest.raises(ValueError, match="negative"):
        algebra.unpack_signs(np.zeros(2, np.uint8), -1)
    with pytest.raises(TypeError, match="uint8"):
        algebra.unpack_signs(np.zeros(2, np.int8), 3)


def test_pack_ballot():
    sign, nonzero, zeros, nans = algebra.pack_ballot(np.array([1.0, -1.0]))
    assert (sign[0], nonzero, zeros, nans) == (2, None, 0, 0)
    sign, nonzero, zeros, nans = algebra.pack_ballot(np.array([1.0, -1.0, 0.0, np.nan, -0.0]))
    assert (zeros, nans, nonzero[0]) == (2, 1, 0b11100011)
    np.testing.assert_array_equal(algebra.unpack_votes(sign, nonzero, 5), [1, -1, 0, 0, 0])
    sign, nonzero, *_ = algebra.pack_ballot(np.array([1.0, -1.0, 0.0, -np.nan, -0.0]), abstain=False)
    assert (sign[0], nonzero) == (2, None)


def test_segments():
    segments = native.Segments([(64, 1), (128, 64), (256, 65)])
    assert segments.offsets.tolist() == [0, 8, 16] and segments.plane_bytes == 32
    moved = segments.with_pointers([1, 2, 3])
    assert moved.pointers.tolist() == [1, 2, 3] and moved.plane_bytes == 32 and segments.pointers[0] == 64
    with pytest.raises(ValueError, match="3 tensors"):
        segments.with_pointers([1, 2])
    with pytest.raises(ValueError, match="multiples of 8"):
        native.Segments([(0, 1)], offsets=[4])


def test_unknown_kernel_set():
    with pytest.raises(ValueError, match=r"available: .*scalar"):
        native.Kernels("mmx")


def imported_with(name):
    """What a fresh Python says when the kernels are imported with HOROVOD_SIGN_KERNELS=name."""
    program = "from horovod_sign.algebra import kernels; print(kernels().name)"
    environment = dict(os.environ, HOROVOD_SIGN_KERNELS=name)
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)


def test_environment_chooses_the_set():
    assert imported_with("scalar").stdout == "scalar\n"
    assert imported_with("").stdout == native.supported()[0] + "\n"
    failed = imported_with("mmx")
    assert failed.returncode != 0
    assert "ImportError: HOROVOD_SIGN_KERNELS='mmx' names no kernel set" in failed.stderr
    assert f"available: {', '.join(native.supported())}" in failed.stderr


def test_import_needs_no_framework():
    program = (
        "import sys, horovod_sign.algebra; print([m for m in ('torch', 'tensorflow', 'mpi4py') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output == "[]\n"
