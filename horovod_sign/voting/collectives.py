"""The collectives that a vote needs, as requests: who carries them out, and when, is the caller's affair.

A protocol (`exchange`, `counts`) is a generator that yields requests and is sent their results: three collectives, and
for votes of nodes an average, or an allgather, within a node. mpi4py carries each out at once; Horovod's engine carries
them out in the background, so that several votes and backward overlap.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np


class Alltoall(NamedTuple):
    """Send `lengths[r]` bytes of `buffer` to each rank r; the result is what all ranks sent here, in rank order."""

    buffer: np.ndarray
    lengths: list[int]


class Allgather(NamedTuple):
    """Send `buffer` to all ranks; the result is the buffers of all ranks, in rank order.

    Lengths may differ, unless all ranks know that they are `alike`.
    """

    buffer: np.ndarray
    alike: bool = False


class Allreduce(NamedTuple):
    """The sum over ranks of the int64 array `words`."""

    words: np.ndarray


Request = Alltoall | Allgather | Allreduce


class Average(NamedTuple):
    """The means over ranks of tensors of the caller's framework; the result is a list of them."""

    tensors: list


class IntraNode(NamedTuple):
    """A request among the ranks of one node only, whose bytes cross no network."""

    request: Allgather | Average


class Collectives(Protocol):
    """A library that carries out requests among `size` ranks, of which this is `rank`.

    Attributes:
        ordered: all ranks must start their requests in the same order, each when the one before is done.
    """

    rank: int
    size: int
    ordered: bool

    def start(self, request: Request, name: str) -> Any:
        """Begins a request and returns a handle. `name` is the same on all ranks and differs between open requests."""

    def done(self, handle: Any) -> bool:
        """Whether `finish` would return without waiting."""

    def finish(self, handle: Any) -> np.ndarray:
        """Waits for a request and returns its result."""

    def idle(self) -> None:
        """Lets a moment pass for requests to go on."""


class AtOnce:
    """A base of `Collectives` that carry each request out when it is started: the handle is the result."""

    ordered = True

    def done(self, handle: Any) -> bool:
        return True

    def finish(self, handle: Any) -> Any:
        return handle

    def idle(self) -> None:
        pass
