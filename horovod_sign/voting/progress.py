"""What is under way in this process goes on wherever it waits.

Two optimizers may be stepped in different orders on different ranks: rank 0 then waits for a vote of the first while
rank 1 waits for one of the second, and each has part of what the other needs. So whoever waits lets all others go on.
"""

import contextlib
import math
import time
import weakref
from collections.abc import Callable
from typing import Protocol

from horovod_sign.voting.collectives import Vote


class UnderWay(Protocol):
    """Something that goes on when it is asked to."""

    def poll(self) -> None:
        """Goes on as far as possible without waiting."""


_under_way: "weakref.WeakSet[UnderWay]" = weakref.WeakSet()


def add(each: UnderWay) -> None:
    """Lets `each` go on, for as long as it lives, wherever this process waits."""
    _under_way.add(each)


def go_on() -> None:
    """Everything that is under way goes on."""
    for each in list(_under_way):
        with contextlib.suppress(Exception):  # no affair of who waits: it is raised again where its vote is waited for
            each.poll()


def wait(vote: Vote, seconds: float = math.inf) -> bool:
    """Waits for a decision, for so long; returns whether it is there."""

    def decided() -> bool:
        vote.poll()
        return vote.decided

    return until(decided, seconds)


def until(done: Callable[[], bool], seconds: float = math.inf) -> bool:
    """Waits until something is done, for so long; returns whether it is."""
    start = time.monotonic()
    while not (is_done := done()) and time.monotonic() - start < seconds:
        go_on()
        time.sleep(50e-6)
    return is_done
