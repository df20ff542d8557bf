"""Which buckets of a step wait, and whose votes are under way: without a framework, and one of two ranks that agree."""

import numpy as np
import pytest

from horovod_sign.voting.collectives import Allreduce
from horovod_sign.voting.messages import Planes
from horovod_sign.voting.reducer import Reducer


class Agreeing:
    """`Collectives` of a rank, of which another votes as it does. A request is done when it was asked for twice."""

    rank, size = 0, 2

    def __init__(self, ordered: bool):
        self.ordered, self.log, self._asked = ordered, [], {}

    def start(self, request: Allreduce, name: str) -> str:
        self.log.append(f"start {name}")
        self._asked[name] = 0, 2 * request.words
        return name

    def done(self, name: str) -> bool:
        asked, words = self._asked[name]
        self._asked[name] = asked + 1, words
        return asked > 0

    def finish(self, name: str) -> np.ndarray:
        self.log.append(f"finish {name}")
        return self._asked[name][1]

    def idle(self):
        self.log.append("idle")


class Packed:
    """A bucket that is packed when it was asked so often."""

    coordinates = 64

    def __init__(self, name: str, patience: int = 0, error: Exception | None = None):
        self.name, self.error, self._patience, self.forgotten = name, error, patience, 0

    @property
    def packed(self) -> bool:
        self._patience -= 1
        return self._patience < 0

    def launch(self, abstain: bool):
        pass

    def collect(self) -> Planes:
        return Planes(np.arange(8, dtype=np.uint8))

    def forget(self):
        self.forgotten += 1


def reducer(collectives: Agreeing, *buckets: Packed) -> Reducer:
    made = Reducer(collectives, "counts", True, "it")
    made.add(list(buckets))
    return made


@pytest.mark.parametrize("ordered", [True, False])
def test_votes_start_at_once_or_when_the_one_before_is_decided(ordered):
    collectives = Agreeing(ordered)
    decisions = list(reducer(collectives, Packed("a"), Packed("b")).decisions())
    assert [bucket.name for bucket, _ in decisions] == ["a", "b"]
    assert all(decided.sign.tolist() == list(range(8)) for _, decided in decisions)
    log = [each for each in collectives.log if each != "idle"]
    begun = ["start it.a.0", "finish it.a.0", "start it.b.0", "finish it.b.0"]
    assert log == (begun if ordered else [begun[0], begun[2], begun[1], begun[3]])


def test_a_bucket_that_is_being_packed_holds_up_no_other():
    collectives = Agreeing(ordered=False)
    step = reducer(collectives, Packed("slow", patience=4), Packed("b"))
    assert [bucket.name for bucket, _ in step.decisions()] == ["b", "slow"]
    assert not step.started and step.bytes_sent == 2 * (64 // 2 + 8)  # fields of 4 bits, and the count of voters


def test_what_one_bucket_cannot_read_all_ranks_hear_of():
    step = reducer(Agreeing(ordered=False), Packed("a", error=RuntimeError("unreadable")), Packed("b"))
    list(step.decisions())
    assert step.noticed
    with pytest.raises(RuntimeError, match="unreadable"):
        step.raise_error()
    step.raise_error()  # once


def test_a_restart_forgets_what_was_under_way():
    before, after, a = Agreeing(ordered=False), Agreeing(ordered=False), Packed("a")
    step = reducer(before, a, Packed("b"))
    next(step.decisions())
    assert step.started
    step.restart(after, "new")
    assert not step.started and a.forgotten == 1
    assert len(list(step.decisions())) == 2 and after.log[0] == "start new.a.0"


@pytest.mark.parametrize("notice", [True, False])
def test_votes_one_by_one_say_whether_any_ballot_had_a_notice(notice):
    step = Reducer(Agreeing(ordered=True), "counts", True, "it")
    step.begin()
    bucket = Packed("0")
    bucket.launch(True)
    decided, noticed = step.decide(bucket, notice)
    assert noticed == notice and decided.sign.tolist() == list(range(8))
