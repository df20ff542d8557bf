"""What is under way in this process goes on wherever it waits.

Two optimizers may be stepped in different orders on different ranks: rank 0 then waits for a vote of the first while
rank 1 waits for one of the second, and each has part of what the other needs. So whoever waits lets all others go on.
"""

import contextlib
import math
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Protocol

from horovod_sign.voting.protocols import Vote


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


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """What is inside is done before Ctrl-C raises its exception. For microseconds, not for what waits for others."""
    usual = signal.getsignal(signal.SIGINT)
    # Python raises it in the main thread alone; and what is not callable raises none.
    if not callable(usual) or threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = []
    signal.signal(signal.SIGINT, lambda *details: pressed.append(details))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if pressed:
            usual(*pressed[0])
