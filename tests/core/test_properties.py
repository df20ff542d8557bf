"""Properties that hold for all inputs, tried on many: packing, tally, decision, transports, against NumPy.

HOROVOD_SIGN_CASES=100000 python -m pytest tests/core/test_properties.py      the long mode
"""

import os
from typing import NamedTuple

import ml_dtypes
import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated_ranks import ballot, vote

from horovod_sign import algebra
from horovod_sign.algebra import native, reference
from horovod_sign.voting import messages
from horovod_sign.voting.protocols import PROTOCOLS

CASES = int(os.environ.get("HOROVOD_SIGN_CASES", 400))
"""Cases in all, over the tests below."""

# Casts of signalling NaN, in the oracle.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in cast")

DTYPES = [np.dtype(name) for name in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]


def cases(share: float):
    """Settings of a test that has `share` of all cases."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=max(1, int(share * CASES)), deadline=None, suppress_health_check=checks)


class Input(NamedTuple):
    """What a rank brings: numbers in memory that need not be aligned to more than their own size."""

    x: np.ndarray
    description: str


@st.composite
def inputs(draw, ranks, lengths):
    """One array for each of some ranks: of one dtype and length, with runs of edge values, at any alignment."""
    dtype, n, m = draw(st.sampled_from(DTYPES)), draw(lengths), draw(ranks)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.0, 0.01, 0.3, 1.0]))
    edges = oracle.edge_values(dtype)
    edges = edges[draw(st.sets(st.integers(0, len(edges) - 1), min_size=1).map(sorted))]
    everyone = []
    for _ in range(m):
        x = _unaligned(n, dtype, int(random.integers(0, 64 // dtype.itemsize)))
        x[:] = random.standard_normal(n).astype(dtype)
        special = random.random(n) < share
        x[special] = random.choice(edges, special.sum())
        if draw(st.booleans()):
            x[:] = random.integers(0, 256, x.nbytes, np.uint8).view(dtype)  # any bits are a number or a NaN
        everyone.append(x)
    return everyone


def _unaligned(n: int, dtype: np.dtype, offset: int) -> np.ndarray:
    return np.empty(n + offset, dtype)[offset:]


SHORT = st.one_of(st.integers(0, 130), st.integers(0, 2000))
FEW, MANY = st.integers(1, 9), st.integers(1, 300)


@cases(0.4)
@given(inputs(st.just(1), SHORT), st.sampled_from([native.SIGNBIT, native.ABSTAIN, native.ONEBIT]), st.data())
def test_packing(everyone, mode, data):
    """Planes and counts, by every kernel set, are the reference's."""
    (x,) = everyone
    expected = reference.pack(x, mode)
    kernels = native.Kernels(data.draw(st.sampled_from(native.supported())))
    segments = native.Segments([(x.__array_interface__["data"][0], x.size)])
    sign, nonzero = np.empty(segments.plane_bytes, np.uint8), np.empty(segments.plane_bytes, np.uint8)
    counted = kernels.pack(x.dtype.name, mode, segments, sign, nonzero)
    np.testing.assert_array_equal(sign, expected[0])
    if mode == native.ABSTAIN:
        np.testing.assert_array_equal(nonzero, expected[1])
        assert counted == expected[2:]


@cases(0.17)
@given(inputs(st.just(1), SHORT))
def test_signs_go_there_and_back(everyone):
    (x,) = everyone
    packed, minus = algebra.pack_signs(x), reference.classify(x)[0]
    np.testing.assert_array_equal(packed, np.packbits(minus, bitorder="little"))
    np.testing.assert_array_equal(algebra.unpack_signs(packed, x.size), np.where(minus, -1, 1))


@cases(0.05)
@given(inputs(MANY, st.integers(0, 200)), st.booleans())
def test_tally_and_decision(everyone, abstain):
    """Up to 300 ballots, as planes and as summed fields."""
    expected = oracle.vote(everyone, abstain)
    ballots = [ballot(x, abstain) for x in everyone]
    sign, nonzero = algebra.tally([b.sign for b in ballots], [b.nonzero for b in ballots], one_bit=not abstain)
    np.testing.assert_array_equal(algebra.unpack_votes(sign, nonzero, everyone[0].size), expected)
    bits = algebra.counts_bits(len(everyone))
    words = sum(messages.encode_fields(b, bits) for b in ballots)
    decided = messages.decode_fields(words, bits, abstain=abstain)
    np.testing.assert_array_equal(algebra.unpack_votes(*decided, everyone[0].size), expected)


@cases(0.3)
@given(inputs(FEW, SHORT), st.booleans(), st.sampled_from(sorted(PROTOCOLS)))
def test_transports(everyone, abstain, transport):
    """All ranks in one process, with the collectives done by hand: all decide the same, and it is the oracle's vote."""
    decisions = vote_in_process(everyone, abstain, transport)
    expected = oracle.vote(everyone, abstain)
    for sign, nonzero in decisions:
        np.testing.assert_array_equal(algebra.unpack_votes(sign, nonzero, expected.size), expected)


@cases(0.01)
@given(inputs(MANY, st.integers(0, 300)), st.booleans(), st.sampled_from(sorted(PROTOCOLS)))
def test_transports_with_many_ranks(everyone, abstain, transport):
    expected = oracle.vote(everyone, abstain)
    sign, nonzero = vote_in_process(everyone, abstain, transport)[-1]
    np.testing.assert_array_equal(algebra.unpack_votes(sign, nonzero, expected.size), expected)


@cases(0.07)
@given(inputs(FEW, SHORT), st.integers(0, 9), st.booleans())
def test_joined_ranks_abstain(everyone, joined, abstain):
    """Ranks that contribute zeros to the summed fields are no voters, also in the one-bit vote."""
    bits = algebra.counts_bits(len(everyone) + joined)
    ballots = [ballot(x, abstain) for x in everyone]
    words = sum(messages.encode_fields(b, bits) for b in ballots)
    decided = messages.decode_fields(words, bits, abstain=abstain)
    np.testing.assert_array_equal(algebra.unpack_votes(*decided, everyone[0].size), oracle.vote(everyone, abstain))


def vote_in_process(everyone, abstain, transport) -> list[messages.Planes]:
    """The decisions of all ranks."""
    return vote(transport, [ballot(x, abstain) for x in everyone], abstain).decisions
