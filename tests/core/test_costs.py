"""The costs in closed form are what votes send, by the real protocols among simulated ranks."""

import numpy as np
import pytest
from simulated_ranks import ballot, vote

from horovod_sign.voting import costs
from horovod_sign.voting.collectives import Allgather, Allreduce, Alltoall

LENGTHS = (1, 63, 64, 65, 1000, 64 * 60, 100_003)
SIZES = (1, 2, 3, 4, 5, 8, 60)


def ballots(n, size, abstain=True, zeros=False):
    random = np.random.default_rng([n, size])
    arrays = [random.standard_normal(n).astype(np.float32) for _ in range(size)]
    return [ballot(0 * x if zeros else x, abstain) for x in arrays]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n", LENGTHS)
def test_one_bit_exchange(n, size):
    sent = vote("exchange", ballots(n, size, abstain=False), abstain=False).sent
    assert costs.exchange_cost(n, size).bytes == sent[0] == max(sent)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n", LENGTHS)
def test_counts(n, size):
    sent = vote("counts", ballots(n, size), abstain=True).sent
    assert [costs.counts_cost(n, size).bytes] * size == sent


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n", (64 * 120, 64 * 6000))
def test_exchange_where_all_abstain(n, size):
    """Everybody's ballot and the vote have second planes everywhere: the most that an exchange sends."""
    sent = vote("exchange", ballots(n, size, zeros=True), abstain=True).sent
    assert [costs.exchange_cost(n, size, (2, 2)).bytes] * size == sent


@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize("size", SIZES[1:])
def test_usual_planes(size, abstain):
    """Random gradients in chunks long enough that each has a tie if there can be any."""
    n = 64 * 6000
    sent = vote("exchange", ballots(n, size, abstain), abstain=abstain).sent
    assert [costs.exchange_cost(n, size, costs.usual_planes(size, abstain)).bytes] * size == sent


def test_messages():
    """M-1 for each alltoall and allgather, 2 (M-1) for a ring allreduce."""
    each = {Alltoall: 1, Allgather: 1, Allreduce: 2}
    for size in SIZES[1:]:
        for transport, cost in (("exchange", costs.exchange_cost), ("counts", costs.counts_cost)):
            kinds = vote(transport, ballots(1000, size), abstain=True).kinds
            assert cost(1000, size).messages == (size - 1) * sum(each[kind] for kind in kinds)


def test_nothing_is_sent_alone():
    for cost in (costs.exchange_cost(999, 1), costs.counts_cost(999, 1)):
        assert cost == costs.Cost(0, 0)


def test_bits_against_floats():
    """The claims of the README: 32 times less than float32; n/8 bytes in each phase, whatever M is."""
    n = 64 * 4096 * 100
    for size in (2, 4, 64, 4096):
        floats, bits = costs.allreduce_cost(4 * n, size), costs.exchange_cost(n, size)
        assert floats.bytes / bits.bytes == pytest.approx(32, rel=1e-2)
        assert bits.bytes == pytest.approx(2 * (size - 1) / size * n / 8, rel=1e-2)


def test_counts_for_too_many():
    with pytest.raises(ValueError, match="32767"):
        costs.counts_cost(1000, 32_768)
