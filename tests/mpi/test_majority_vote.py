"""majority_vote under mpirun, against the oracle. Every rank makes the inputs of all ranks from their seeds."""

import functools

import numpy as np
import oracle
import pytest

from horovod_sign import majority_vote
from horovod_sign.voting import mpi

RANKS = (
    1,
    2,
    3,
    6,
)  # alone; even, odd; two communicators of three, more ranks than cores; four: core/test_protocols.py

TRANSPORTS = ("exchange", "counts")


@functools.lru_cache(16)  # the same for all options
def inputs_of(size, n, dtype, edges):
    return [oracle.gradients(rank, n, dtype, edges=edges) for rank in range(size)]


@functools.lru_cache(16)
def expected(size, n, dtype, edges, abstain):
    return oracle.vote(inputs_of(size, n, dtype, edges), abstain)


def check(comm, n, dtype, abstain, transport, edges=True):
    case = comm.size, n, dtype, edges
    vote = majority_vote(inputs_of(*case)[comm.rank], comm, abstain=abstain, transport=transport)
    assert vote.dtype == np.int8
    np.testing.assert_array_equal(vote, expected(*case, abstain), f"n={n} {dtype} {abstain=} {transport=}")


@pytest.mark.quick
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
def test_short_lengths(comm, dtype, abstain, transport):
    """Ranks that own nothing, a word or several. Every length, on simulated ranks: tests/core/test_protocols.py."""
    for n in (0, 1, 7, 64, 65, 129, 257):
        check(comm, n, dtype, abstain, transport)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
def test_odd_large_lengths(comm, dtype, abstain, transport):
    """Messages that MPI sends at once, and those that it does not: more than 4 KB between two of six ranks."""
    for n in (4_097, 250_007):
        check(comm, n, dtype, abstain, transport)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_nobody_abstains(comm, transport):
    check(comm, 100_003, np.float32, True, transport, edges=False)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_one_rank_abstains_everywhere(comm, transport):
    inputs = [oracle.gradients(rank, 999, np.float32, edges=False) for rank in range(comm.size)]
    inputs[-1][:] = np.nan
    vote = majority_vote(inputs[comm.rank], comm, transport=transport)
    np.testing.assert_array_equal(vote, oracle.vote(inputs))


@pytest.mark.quick
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_pieces(comm, transport, monkeypatch):
    """Arrays too long for one vote are voted on in pieces."""
    monkeypatch.setattr(mpi, "PIECE", 1000)
    for n in (999, 1000, 1001, 12_345):
        check(comm, n, np.float32, True, transport)


@pytest.mark.parametrize("transport", ["auto", *TRANSPORTS])
def test_auto_is_the_exchange(comm, transport, monkeypatch):
    """What each transport sends, told by the requests that are carried out."""
    asked = []
    start = mpi.MpiCollectives.start
    monkeypatch.setattr(mpi.MpiCollectives, "start", lambda s, r, n: asked.append(type(r).__name__) or start(s, r, n))
    check(comm, 1000, np.float32, True, transport)
    sent = ["Allreduce"] if transport == "counts" else ["Alltoall", "Allgather"]
    # First all agree; a vote of one asks for nothing.
    assert asked == ["Allgather", *(sent if comm.size > 1 else [])]


def test_shapes_and_strides(comm):
    inputs = [oracle.gradients(rank, 3 * 5 * 7, np.float32).reshape(3, 5, 7) for rank in range(comm.size)]
    expected = oracle.vote(inputs)
    mine = inputs[comm.rank]
    np.testing.assert_array_equal(majority_vote(mine, comm), expected)
    np.testing.assert_array_equal(majority_vote(np.asfortranarray(mine), comm), expected)
    np.testing.assert_array_equal(majority_vote(mine[::-1, :, ::2], comm), expected[::-1, :, ::2])
    assert majority_vote(mine[:, :0], comm).shape == (3, 0, 7)
    assert majority_vote(mine[0, 0, 0], comm).shape == ()


def test_default_communicator(comm):
    x = oracle.gradients(comm.rank, 100, np.float64)
    np.testing.assert_array_equal(majority_vote(x), majority_vote(x, comm))


@pytest.mark.fault("process-sets")
def test_votes_on_disjoint_communicators(comm):
    """Odd and even ranks vote at the same time on different things."""
    half = comm.Split(comm.rank % 2)
    for transport in TRANSPORTS:
        members = range(comm.rank % 2, comm.size, 2)
        inputs = [oracle.gradients(rank, 1000 + comm.rank % 2, np.float32) for rank in members]
        vote = majority_vote(inputs[half.rank], half, transport=transport)
        np.testing.assert_array_equal(vote, oracle.vote(inputs))
    half.Free()


def test_traffic_is_one_bit_each_way(comm):
    """Nobody abstains and nothing ties: (M-1)/M * n/8 bytes a rank and phase, and nothing more than the first bytes."""
    from horovod_sign.voting.messages import Planes
    from horovod_sign.voting.protocols import Vote, exchange

    n = 64 * 1000 * comm.size
    plane = np.full(n // 8, 0b10110100, np.uint8)
    vote = Vote(exchange(Planes(plane), comm.rank, comm.size, abstain=True), mpi.MpiCollectives(comm), "traffic")
    np.testing.assert_array_equal(vote.wait().sign, plane)
    assert vote.wait().nonzero is None
    others = comm.size - 1
    assert vote.bytes_sent == 2 * others * (n // 8 // comm.size + 1) * (comm.size > 1)


@pytest.mark.fault("differ")
@pytest.mark.quick
@pytest.mark.parametrize(
    ("odd_one", "words"),
    [
        (lambda x: x[:-1], "and (9,) on"),
        (lambda x: x.astype(np.float64), "and float64 on"),
        (lambda x: x.reshape(2, 5), "and (2, 5) on"),
    ],
)
def test_ranks_that_differ_are_all_told(comm, odd_one, words):
    """The last rank differs: every rank gets an error that names it, and nobody hangs."""
    if comm.size == 1:
        pytest.skip("one rank agrees with itself")
    x = np.ones(10, np.float32)
    with pytest.raises(ValueError, match=f"on rank {comm.size - 1}:") as error:
        majority_vote(odd_one(x) if comm.rank == comm.size - 1 else x, comm)
    assert words in str(error.value)
    assert majority_vote(x, comm).all()  # and the next vote works


@pytest.mark.parametrize("option", [{"abstain": False}, {"transport": "counts"}])
def test_options_that_differ_are_all_told(comm, option):
    if comm.size == 1:
        pytest.skip("one rank agrees with itself")
    with pytest.raises(ValueError, match=rf"but argument {next(iter(option))} is .* on rank 0 and .* on rank"):
        majority_vote(np.ones(10), comm, **(option if comm.rank == 0 else {}))


@pytest.mark.parametrize("dtype", [np.int32, np.int8, np.uint8, np.complex64, np.bool_, object])
def test_dtypes_without_a_sign_bit_of_their_own(comm, dtype):
    """Bad input on rank 0 alone: all ranks are told, and told which rank it is."""
    x = np.ones(10, dtype if comm.rank == 0 else np.float32)
    with pytest.raises(TypeError, match="rank 0 cannot vote"):
        majority_vote(x, comm)


def test_bad_options(comm):
    with pytest.raises(ValueError, match="'carrier pigeon'"):
        majority_vote(np.ones(3), comm, transport="carrier pigeon")
    with pytest.raises(TypeError, match="abstain must be True or False"):
        majority_vote(np.ones(3), comm, abstain="no")
    with pytest.raises(TypeError, match="intracommunicator"):
        majority_vote(np.ones(3), "COMM_WORLD")
