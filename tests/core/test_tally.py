"""The majority of ballots, in every kernel set, against the NumPy oracle."""

import itertools

import numpy as np
import pytest

from horovod_sign import algebra
from horovod_sign.algebra import native, reference

GUARD = 0xA5
each_set = pytest.mark.parametrize("kernels", [native.Kernels(name) for name in native.supported()], ids=repr)


def placed(array, offset):
    """A copy that starts `offset` bytes after a 64-byte border, with guard bytes around; and all of these bytes."""
    raw = np.full(array.size + 192 + offset, GUARD, np.uint8)
    start = -raw.ctypes.data % 64 + 64 + offset
    raw[start : start + array.size] = array
    return raw[start : start + array.size], raw


def ballots(rng, m, nbytes, share):
    """m ballots of random bits, a share of which has nonzero planes; both at odd places."""
    signs = [placed(rng.integers(0, 256, nbytes, np.uint8), int(rng.integers(64)))[0] for _ in range(m)]
    nonzeros = [
        placed(rng.integers(0, 256, nbytes, np.uint8), int(rng.integers(64)))[0] if rng.random() < share else None
        for _ in range(m)
    ]
    return signs, nonzeros


def check(kernels, signs, nonzeros, nbytes, offset=5):
    """One tally with and one without a nonzero plane to write, between guards."""
    expected_sign, expected_nonzero, expected_ties = reference.tally(signs, nonzeros, 8 * nbytes)
    for one_bit in (False, True):
        sign, all_sign = placed(np.full(nbytes, 0x3C, np.uint8), offset)
        nonzero, all_nonzero = placed(np.full(nbytes, 0x3C, np.uint8), 63 - offset)
        ties = kernels.tally(signs, nonzeros, nbytes, sign, None if one_bit else nonzero, one_bit)
        assert ties == expected_ties
        np.testing.assert_array_equal(sign, expected_sign)
        np.testing.assert_array_equal(nonzero, np.full(nbytes, 0x3C) if one_bit else expected_nonzero)
        for whole, inner in ((all_sign, sign), (all_nonzero, nonzero)):
            assert (whole == GUARD).sum() == whole.size - nbytes + (inner == GUARD).sum(), "written outside the plane"


@each_set
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_numbers_of_voters(kernels, share):
    rng = np.random.default_rng(1)
    for m in [*range(1, 41), 63, 64, 65, 127, 128, 255, 256, 300, 1024]:
        nbytes = 67 if m > 40 else int(rng.integers(1, 400))
        check(kernels, *ballots(rng, m, nbytes, share), nbytes)


@each_set
@pytest.mark.parametrize("m", [1, 2, 7, 8, 9, 16, 17, 40])
def test_lengths_and_alignments(kernels, m):
    """Whole blocks, vectors, and tails of every length."""
    rng = np.random.default_rng(2)
    for nbytes in [*range(0, 137), 1023, 1024, 1025, 2048, 3001]:
        check(kernels, *ballots(rng, m, nbytes, (nbytes % 3) / 2), nbytes, offset=nbytes % 64)


@each_set
def test_extremes(kernels):
    """All for plus, all for minus, all abstaining, and one vote more or less than a tie."""
    for m in (1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 100, 1000, 4096):
        for minus in {0, 1, m // 2, (m + 1) // 2, m // 2 + 1, m}:
            if minus > m:
                continue
            signs = [np.full(9, 0xFF if i < minus else 0, np.uint8) for i in range(m)]
            check(kernels, signs, [None] * m, 9)
            check(kernels, signs, [np.zeros(9, np.uint8)] * m, 9)
            check(kernels, signs, [None] * (m - 1) + [np.zeros(9, np.uint8)], 9)


@each_set
def test_every_vote_of_three(kernels):
    """All 27 combinations of three votes, against the rule in words."""
    for votes in itertools.product((-1, 0, 1), repeat=3):
        signs = [np.full(1, 0xFF if v < 0 else 0, np.uint8) for v in votes]
        nonzeros = [np.full(1, 0xFF if v else 0, np.uint8) for v in votes]
        sign, nonzero = np.zeros(1, np.uint8), np.zeros(1, np.uint8)
        ties = kernels.tally(signs, nonzeros, 1, sign, nonzero)
        np.testing.assert_array_equal(algebra.unpack_votes(sign, nonzero, 8), np.full(8, np.sign(sum(votes))))
        assert ties == (8 if sum(votes) == 0 else 0)


@each_set
def test_output_over_an_input(kernels):
    rng = np.random.default_rng(3)
    for m in (3, 12, 40):
        signs, nonzeros = ballots(rng, m, 3000, 1.0)
        expected_sign, expected_nonzero, _ = reference.tally(signs, nonzeros, 24000)
        kernels.tally(signs, nonzeros, 3000, signs[1], nonzeros[1])
        np.testing.assert_array_equal(signs[1], expected_sign)
        np.testing.assert_array_equal(nonzeros[1], expected_nonzero)


def test_sign_of_sum_of_signs():
    """From numbers to the vote: numpy.sign(sum of numpy.sign), NaN counting as 0."""
    rng = np.random.default_rng(4)
    for m in (1, 2, 5, 8, 30):
        x = rng.integers(-2, 3, (m, 1003)).astype(np.float32)
        x[rng.random(x.shape) < 0.1] = np.nan
        packed = [algebra.pack_ballot(row) for row in x]
        sign, nonzero = algebra.tally([p[0] for p in packed], [p[1] for p in packed])
        expected = np.sign(np.nan_to_num(np.sign(x), nan=0.0).sum(axis=0))
        np.testing.assert_array_equal(algebra.unpack_votes(sign, nonzero, 1003), expected)


def test_nonzero_plane_only_where_needed():
    plus, minus = np.zeros(8, np.uint8), np.full(8, 0xFF, np.uint8)
    assert algebra.tally([plus, minus, minus])[1] is None
    assert algebra.tally([plus, minus])[1] is not None
    assert algebra.tally([plus, minus], one_bit=True)[1] is None


def test_bad_arguments():
    plane = np.zeros(8, np.uint8)
    with pytest.raises(ValueError, match="at least one"):
        algebra.tally([])
    with pytest.raises(ValueError, match="differ in length"):
        algebra.tally([plane, plane[:5]])
    with pytest.raises(ValueError, match="2 sign planes but 1"):
        native.kernels().tally([plane, plane], [None], 8, plane, plane)
    with pytest.raises(TypeError, match="uint8"):
        algebra.tally([plane.astype(np.int8)])
