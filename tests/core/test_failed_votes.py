"""A vote whose request has failed is no more: the same error whenever it is asked, and its library is not asked."""

import numpy as np
import pytest

from horovod_sign.voting.messages import Planes
from horovod_sign.voting.protocols import PROTOCOLS, Vote


class Failing:
    """Collectives of two ranks of which the other has gone; a handle can be finished once, as Horovod's."""

    rank, size, ordered = 0, 2, False

    def __init__(self):
        self.finished = 0

    def start(self, request, name):
        return name

    def done(self, handle):
        assert not self.finished, "the handle is no more"
        return True

    def finish(self, handle):
        self.finished += 1
        raise RuntimeError("the other rank has joined")


@pytest.mark.parametrize("protocol", ["exchange", "counts"])
def test_the_error_of_a_failed_vote_stays(protocol):
    collectives = Failing()
    vote = Vote(PROTOCOLS[protocol](Planes(np.zeros(8, np.uint8)), 0, 2, abstain=True), collectives, "vote")
    for ask in (vote.poll, vote.poll, vote.wait):
        with pytest.raises(RuntimeError, match="the other rank has joined"):
            ask()
    assert not vote.decided and collectives.finished == 1
