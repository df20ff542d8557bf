"""Votes as summable fields, in every kernel set, against the NumPy oracle."""

import numpy as np
import pytest

from horovod_sign import algebra
from horovod_sign.algebra import native, reference

BITS = [2, 4, 8, 16]
LENGTHS = [*range(0, 300), 1000, 4099]
each_set = pytest.mark.parametrize("kernels", [native.Kernels(name) for name in native.supported()], ids=repr)
each_width = pytest.mark.parametrize("bits", BITS)


def guarded(nbytes, offset):
    """An array to write to, at an odd place between guard bytes; and a function that checks these."""
    raw = np.full(nbytes + 128, 0xA5, np.uint8)

    def check():
        assert (raw[: 64 + offset] == 0xA5).all() and (raw[64 + offset + nbytes :] == 0xA5).all()

    return raw[64 + offset : 64 + offset + nbytes], check


@each_set
@each_width
def test_encode(kernels, bits):
    rng = np.random.default_rng(1)
    for n in LENGTHS:
        sign, nonzero = (rng.integers(0, 256, (n + 7) // 8, np.uint8) for _ in range(2))
        for votes in (nonzero, None):
            fields, check = guarded((n * bits + 7) // 8, n % 64)
            kernels.encode_counts(bits, sign, votes, n, fields)
            np.testing.assert_array_equal(fields, reference.encode_counts(bits, sign, votes, n))
            check()


@each_set
@each_width
def test_decode(kernels, bits):
    """Random sums, around the number of voters, and any bits at all."""
    rng = np.random.default_rng(2)
    most = (2**bits - 1) // 2
    for n in LENGTHS:
        voters = int(rng.integers(1, most + 1))
        near = np.clip(voters + rng.integers(-2, 3, n), 0, 2 * voters)
        sums = np.where(rng.random(n) < 0.7, near, rng.integers(0, 2**bits, n))
        each = (sums[:, None] >> np.arange(bits)) & 1
        fields = np.packbits(each.astype(bool).ravel(), bitorder="little")
        for one_bit in (False, True):
            expected_sign, expected_nonzero, expected_ties = reference.decode_counts(bits, fields, voters, n, one_bit)
            sign, check_sign = guarded(algebra.plane_bytes(n), n % 64)
            nonzero, check_nonzero = guarded(algebra.plane_bytes(n), 63 - n % 64)
            ties = kernels.decode_counts(bits, fields, voters, n, sign, nonzero, one_bit)
            assert ties == expected_ties
            np.testing.assert_array_equal(sign, expected_sign)
            np.testing.assert_array_equal(nonzero, np.full(nonzero.size, 0xA5) if one_bit else expected_nonzero)
            check_sign(), check_nonzero()


@each_set
@each_width
def test_decode_every_field_value(kernels, bits):
    """All values of a field against a few numbers of voters: comparisons are unsigned."""
    values = np.arange(2**bits)
    each = (values[:, None] >> np.arange(bits)) & 1
    fields = np.packbits(each.astype(bool).ravel(), bitorder="little")
    most = (2**bits - 1) // 2
    for voters in {0, 1, most // 2, most - 1, most}:
        sign, nonzero = (np.empty(algebra.plane_bytes(values.size), np.uint8) for _ in range(2))
        kernels.decode_counts(bits, fields, voters, values.size, sign, nonzero)
        np.testing.assert_array_equal(reference.votes(sign, nonzero, values.size), np.sign(values - voters))


@pytest.mark.parametrize("voters", [1, 2, 3, 7, 8, 20, 127, 128, 300])
def test_sum_of_fields_is_the_majority(voters):
    """Fields added as 64-bit integers decide like the tally does."""
    rng = np.random.default_rng(3)
    n, bits = 1003, algebra.counts_bits(voters)
    x = rng.integers(-1, 2, (voters, n)).astype(np.float32)
    packed = [algebra.pack_ballot(row)[:2] for row in x]
    whole = algebra.plane_bytes(n) * 8
    total = sum(algebra.encode_counts(bits, s, z, whole).view(np.int64) for s, z in packed)
    sign, nonzero = algebra.decode_counts(bits, total.view(np.uint8), voters, n)
    expected_sign, expected_nonzero = algebra.tally([p[0] for p in packed], [p[1] for p in packed])
    np.testing.assert_array_equal(sign, expected_sign)
    np.testing.assert_array_equal(nonzero, expected_nonzero)
    np.testing.assert_array_equal(algebra.unpack_votes(sign, nonzero, n), np.sign(x.sum(axis=0)))


def test_counts_bits():
    assert [algebra.counts_bits(m) for m in (1, 2, 7, 8, 127, 128, 32767)] == [2, 4, 4, 8, 8, 16, 16]
    for m in (0, -1, 32768):
        with pytest.raises(ValueError, match="32767"):
            algebra.counts_bits(m)


@each_width
def test_single_fields(bits):
    fields = algebra.encode_counts(bits, np.array([0b0110], np.uint8), np.array([0b1011], np.uint8), 4)
    assert [algebra.get_field(fields, bits, i) for i in range(4)] == [2, 0, 1, 2]
    grown = np.concatenate([fields, np.zeros(2, np.uint8)])
    algebra.put_field(grown, bits, 4, 2**bits - 1)
    assert [algebra.get_field(grown, bits, i) for i in range(5)] == [2, 0, 1, 2, 2**bits - 1]
    algebra.put_field(grown, bits, 1, 2)
    assert [algebra.get_field(grown, bits, i) for i in range(5)] == [2, 2, 1, 2, 2**bits - 1]
    with pytest.raises(ValueError, match="does not fit"):
        algebra.put_field(grown, bits, 0, 2**bits)


def test_bad_arguments():
    plane = np.zeros(8, np.uint8)
    with pytest.raises(ValueError, match="2, 4, 8 or 16"):
        algebra.encode_counts(3, plane, None, 8)
    with pytest.raises(ValueError, match="too short"):
        algebra.encode_counts(2, plane, None, 65)
    with pytest.raises(ValueError, match="too short"):
        algebra.decode_counts(2, plane, 1, 33)
    with pytest.raises(ValueError, match="cannot count"):
        algebra.decode_counts(2, plane, 4, 8)
