"""What goes beside votes: notices that all ranks read, and comparisons of what should be the same. Simulated ranks."""

import numpy as np
import oracle
import pytest

from horovod_sign.algebra import pack_ballot, unpack_votes
from horovod_sign.voting import replicas
from horovod_sign.voting.collectives import Allgather, Allreduce, Alltoall
from horovod_sign.voting.messages import Memory, Notices, Planes
from horovod_sign.voting.protocols import PROTOCOLS


def run(protocols: list, joined=()) -> list:
    """What each rank's protocol returns; ranks that have joined bring zeros."""
    requests, results = [next(p) for p in protocols], {}
    while len(results) < len(protocols):
        if isinstance(requests[0], Alltoall):
            cut = [np.split(r.buffer, np.cumsum(r.lengths)[:-1]) for r in requests]
            answers = [np.concatenate([of_rank[me] for of_rank in cut]) for me in range(len(cut))]
        elif isinstance(requests[0], Allgather):
            answers = [np.concatenate([r.buffer for r in requests])] * len(requests)
        else:
            assert all(isinstance(r, Allreduce) for r in requests)
            answers = [sum(r.words for i, r in enumerate(requests) if i not in joined)] * len(requests)
        for i, protocol in enumerate(protocols):
            try:
                requests[i] = protocol.send(answers[i].copy())
            except StopIteration as stop:
                results[i] = stop.value
    return [results[i] for i in range(len(protocols))]


@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("transport", ["exchange", "counts"])
def test_a_notice_of_any_rank_reaches_all_and_changes_no_vote(transport, size, abstain):
    inputs = [oracle.gradients(rank, 300, np.float32) for rank in range(size)]
    for givers in [set(), {0}, {size - 1}, set(range(size))]:
        ops = [Notices(rank in givers) for rank in range(size)]
        ballots = [Planes(*pack_ballot(x, abstain)[:2]) for x in inputs]
        protocols = [PROTOCOLS[transport](ballots[r], r, size, abstain=abstain, ops=ops[r]) for r in range(size)]
        if size == 1:
            with pytest.raises(StopIteration) as stop:
                next(protocols[0])
            decided = [stop.value.value]
        else:
            decided = run(protocols)
        assert [each.found for each in ops] == [bool(givers)] * size
        for each in decided:
            np.testing.assert_array_equal(unpack_votes(*each, 300), oracle.vote(inputs, abstain))


@pytest.mark.parametrize("size", [2, 3])
def test_votes_that_follow_each_other_in_the_same_memory(size):
    memories = [Memory() for _ in range(size)]
    for seed, zeros in enumerate([0, 300, 7, 0, 40]):  # second planes in some chunks, in all, in none
        inputs = [oracle.gradients(size * seed + rank, 300, np.float32) for rank in range(size)]
        for each in inputs:
            each[~(np.abs(each) > 0)] = 1  # NaN too
            each[:zeros] = 0
        ops = [Notices(False, memory) for memory in memories]
        ballots = [Planes(*pack_ballot(x)[:2]) for x in inputs]
        if seed == 3:  # one fails when its messages are on their way, and is read late
            late = ops[0].split(ballots[0], [(0, 40)])[0]
            kept = late.copy()
            ops[0] = Notices(False, memories[0])
        decided = run([PROTOCOLS["exchange"](ballots[r], r, size, abstain=True, ops=ops[r]) for r in range(size)])
        for each in decided:
            np.testing.assert_array_equal(unpack_votes(*each, 300), oracle.vote(inputs, True))
    np.testing.assert_array_equal(late, kept)


def items(lr=0.1, crc="aa", more=()) -> list[replicas.Item]:
    numbers = replicas.numbers({"lr": lr, "betas": (0.9, np.float64(0.5))}, ["lr", "betas", "foreach"], "group 0")
    return [*numbers, replicas.Item("parameters", "the checksum of w", crc), *more]


def compared(*of_ranks, joined=()) -> list:
    size = len(of_ranks)
    results = run([replicas.compare(each, rank, size) for rank, each in enumerate(of_ranks)], joined)
    assert all(each == results[0] for i, each in enumerate(results) if i not in joined)
    return [text for _, text in results[0]]


def test_what_is_the_same_is_no_difference():
    assert compared(items(), items(np.float64(0.1)), items(np.array(0.1))) == []


def test_the_first_difference_of_each_kind_is_told():
    assert compared(items(), items(0.2), items(0.1, "bb")) == [
        "lr of group 0 is 0.1 on ranks 0, 2 and 0.2 on rank 1",
        "the checksum of w is aa on ranks 0, 1 and bb on rank 2",
    ]


def test_another_number_of_items():
    (text,) = compared(items(), items(more=items()))
    assert "the number of what is compared is 3 on rank 0 and 6 on rank 1" in text


def test_ranks_that_have_joined_do_not_count():
    assert compared(items(), items(), items(0.2), joined=[2]) == []
    assert compared(items(), items(0.3), items(0.2), joined=[2]) == ["lr of group 0 is 0.1 on rank 0 and 0.3 on rank 1"]


@pytest.mark.parametrize("sizes", [[], [5], [3, 0, 40, 1], [100] * 7, [8, 16, 24]])
def test_parts_reach_every_byte_in_turn(sizes):
    """Of a small model all, of a large one no more than 16 bytes at once."""
    whole = {(i, byte) for i, size in enumerate(sizes) for byte in range(size)}
    rounds = [list(replicas.parts(sizes, number, 16)) for number in range(-(-sum(sizes) // 16) or 1)]
    reached = [{(i, byte) for i, start, stop in each for byte in range(start, stop)} for each in rounds]
    assert set().union(*reached) == whole
    assert all(len(each) <= 16 for each in reached)
    if sum(sizes) <= 16:
        assert list(replicas.parts(sizes, 5, 16)) == rounds[0]
