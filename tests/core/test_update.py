"""Arithmetic: the momentum's interpolation and the parameters' step, bit for bit what NumPy computes."""

import ml_dtypes
import numpy as np
import pytest

from horovod_sign.algebra import native, reference

DTYPES = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
LENGTHS = [*range(0, 200, 7), 63, 64, 65, 127, 128, 129, 20011]
each_set = pytest.mark.parametrize("kernels", [native.Kernels(name) for name in native.supported()], ids=repr)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)


def any_bits(rng, n, dtype):
    """n numbers of random bits (so of all sizes, with NaNs and subnormals), the half of them of ordinary size."""
    wild = rng.integers(0, 256, n * dtype.itemsize, np.uint8).view(dtype)
    return np.where(rng.random(n) < 0.5, wild, rng.standard_normal(n).astype(dtype))


def off_by(array, offset):
    """A copy at an odd place, and the bytes around it."""
    raw = np.full(array.nbytes + 192, 0xA5, np.uint8)
    inner = raw[64 + offset : 64 + offset + array.nbytes]
    inner[:] = array.view(np.uint8)
    return inner, raw


def assert_same(actual, expected):
    """The same bits; a NaN only has to be a NaN."""
    nan = reference.classify(expected)[2]
    np.testing.assert_array_equal(reference.classify(actual)[2], nan)
    np.testing.assert_array_equal(reference.bits_of(actual)[~nan], reference.bits_of(expected)[~nan])


def assert_guards(inner, raw):
    around = np.ones(raw.size, bool)
    start = inner.ctypes.data - raw.ctypes.data
    around[start : start + inner.size] = False
    assert (raw[around] == 0xA5).all(), "written outside the array"


def planes(rng, n):
    size = (n + 63) // 64 * 8
    return rng.integers(0, 256, size, np.uint8), rng.integers(0, 256, size, np.uint8)


@each_set
@each_dtype
@pytest.mark.parametrize("weight_decay", [0.0, 0.013, -1.5])
def test_apply(kernels, dtype, weight_decay):
    rng = np.random.default_rng(1)
    for n in LENGTHS:
        x = any_bits(rng, n, dtype)
        sign, nonzero = planes(rng, n)
        for votes in (None, nonzero):
            for lr in (1e-3, 0.3, -2.0):
                inner, raw = off_by(x, n % 61)
                kernels.apply(dtype, native.Segments([(inner, n)]), sign, votes, lr, weight_decay)
                assert_same(inner.copy().view(dtype), reference.apply(x, sign, votes, lr, weight_decay))
                assert_guards(inner, raw)


@each_set
@each_dtype
def test_apply_rounds_once_to_nearest_even(kernels, dtype):
    """Steps near half a unit in the last place, where a second rounding or another rounding mode would show."""
    rng = np.random.default_rng(2)
    n = 20000
    exponents = rng.integers(-16, 12, n)
    x = (rng.integers(-2048, 2048, n) * 2.0**exponents).astype(np.float32).clip(-60000, 60000).astype(dtype)
    sign, nonzero = planes(rng, n)
    for lr in (2.0**-12, 3 * 2.0**-13, 2.0**-25, 6e-8):
        y = x.copy()
        kernels.apply(dtype, native.Segments([(y, n)]), sign, nonzero, lr, 0.0)
        assert_same(y, reference.apply(x, sign, nonzero, lr, 0.0))


@each_set
def test_every_float16(kernels):
    """All 65536 numbers, through float32 and back: a step of zero leaves them alone."""
    x = np.arange(65536, dtype=np.uint16).view(np.float16)
    y = x.copy()
    kernels.apply("float16", native.Segments([(y, y.size)]), np.zeros(8192, np.uint8), None, 0.0)
    assert_same(y, x)


@each_set
def test_apply_per_tensor(kernels):
    """Each tensor has its own learning rate and weight decay."""
    rng = np.random.default_rng(3)
    tensors = [rng.standard_normal(n).astype(np.float32) for n in (5, 100, 0, 64)]
    copies = [x.copy() for x in tensors]
    segments = native.Segments([(x, x.size) for x in copies])
    sign = rng.integers(0, 256, segments.plane_bytes, np.uint8)
    lr, decay = [0.1, 0.2, 0.3, 0.4], [0.0, 0.01, 0.0, 0.5]
    kernels.apply("float32", segments, sign, None, lr, decay)
    for x, y, start, a, w in zip(tensors, copies, segments.offsets, lr, decay, strict=True):
        assert_same(y, reference.apply(x, sign[start:], None, a, w))


@each_set
@each_dtype
@pytest.mark.parametrize("mode", [native.SIGNBIT, native.ABSTAIN, native.ONEBIT])
@pytest.mark.parametrize("warm", [False, True])
def test_interpolate_pack(kernels, dtype, mode, warm):
    rng = np.random.default_rng(4)
    for n in LENGTHS:
        g, m = any_bits(rng, n, dtype), any_bits(rng, n, np.dtype(np.float32))
        m[rng.random(n) < 0.2] = 0
        g[rng.random(n) < 0.2] = 0
        for betas in ((0.9, 0.99), (0.9, 0.9), (0.0, 1.0)):
            gradient, momentum = off_by(g, n % 59)[0], off_by(m, n % 53)
            segments = native.Segments([(gradient, n)])
            sign, nonzero = (np.full(segments.plane_bytes, 0x3C, np.uint8) for _ in range(2))
            counts = kernels.interpolate_pack(dtype, mode, segments, [momentum[0]], *betas, sign, nonzero, warm)
            expected = reference.interpolate_pack(g, m, *betas, mode, warm)
            assert_same(momentum[0].copy().view(np.float32), expected[0])
            np.testing.assert_array_equal(sign, expected[1])
            if mode == native.ABSTAIN:
                np.testing.assert_array_equal(nonzero, expected[2])
                assert counts == expected[3:]
            assert_guards(*momentum)


@each_set
def test_signum_votes_the_new_momentum(kernels):
    """With equal betas the ballot is that of the momentum just written, to the last bit."""
    rng = np.random.default_rng(5)
    n = 10007
    g, m = rng.standard_normal(n).astype(np.float32), np.zeros(n, np.float32)
    segments = native.Segments([(g, n)])
    sign, nonzero = (np.empty(segments.plane_bytes, np.uint8) for _ in range(2))
    for _ in range(3):
        kernels.interpolate_pack("float32", native.ABSTAIN, segments, [m], 0.9, 0.9, sign, nonzero)
        expected = reference.pack(m, native.ABSTAIN)
        np.testing.assert_array_equal(sign, expected[0])
        np.testing.assert_array_equal(nonzero, expected[1])


@each_set
def test_not_finite_gradients_spare_the_momentum(kernels):
    g = np.array([np.nan, -np.nan, np.inf, -np.inf, 1.0], np.float32)
    m = np.array([-1.0, -1.0, -1.0, 1.0, 1.0], np.float32)
    sign, nonzero = np.zeros(8, np.uint8), np.zeros(8, np.uint8)
    segments = native.Segments([(g, 5)])
    counts = kernels.interpolate_pack("float32", native.ABSTAIN, segments, [m], 0.5, 0.5, sign, nonzero)
    assert m.tolist() == [-1.0, -1.0, -1.0, 1.0, 1.0] and counts == (0, 2)
    assert reference.votes(sign, nonzero, 5).tolist() == [0, 0, 1, -1, 1]
