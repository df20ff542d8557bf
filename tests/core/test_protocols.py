"""Both protocols among simulated ranks, against the oracle: every short length, where chunks and fields have ends."""

import functools

import numpy as np
import oracle
import pytest
from simulated_ranks import ballot, vote

from horovod_sign import algebra

# Alone; even, odd; more ranks than words of a plane.
SIZES = (1, 2, 3, 4, 6)


@functools.cache  # the same for all options
def gradients(rank, n, dtype):
    return oracle.gradients(rank, n, dtype)


@pytest.mark.parametrize("transport", ["exchange", "counts"])
@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_every_short_length(dtype, abstain, transport):
    """From arrays to votes as `majority_vote` does it, all ranks deciding the same."""
    for size in SIZES:
        for n in range(258):
            inputs = [gradients(rank, n, dtype) for rank in range(size)]
            decisions = vote(transport, [ballot(x, abstain) for x in inputs], abstain).decisions
            expected = oracle.vote(inputs, abstain)
            for sign, nonzero in decisions:
                np.testing.assert_array_equal(algebra.unpack_votes(sign, nonzero, n), expected, f"{size=} {n=}")


@pytest.mark.parametrize("transport", ["exchange", "counts"])
def test_decided_planes_have_clean_padding(transport):
    """The bits after the last coordinate do not abstain and are plus: whoever counts bits relies on it."""
    for size in SIZES:
        decisions = vote(transport, [ballot(np.zeros(70, np.float32))] * size, abstain=True).decisions
        for sign, nonzero in decisions:
            assert np.unpackbits(sign, bitorder="little").sum() == 0
            assert np.unpackbits(nonzero, bitorder="little").tolist() == [0] * 70 + [1] * 58
