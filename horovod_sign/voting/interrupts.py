"""Ctrl-C while a vote is being started: it waits until the vote is on its way and known to be, so that none is lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
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
