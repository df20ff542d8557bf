"""The collectives that a vote needs, as requests: who carries them out, and when, is the caller's affair.

A protocol (`exchange`, `counts`) is a generator that yields requests and is sent their results: three collectives, and
for votes of nodes an average, or an allgather, within a node. mpi4py carries each out at once; Horovod's engine carries
them out in the background, so that several votes and backward overlap.
"""

from collections.abc import Callable, Generator
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


def bytes_sent(request: Request | IntraNode, size: int, rank: int) -> int:
    """The payload that one rank sends over the network for a request, by the bandwidth-optimal (ring) algorithms."""
    if isinstance(request, IntraNode):
        return 0
    if isinstance(request, Alltoall):
        return sum(request.lengths) - request.lengths[rank]
    if isinstance(request, Allgather):
        return (size - 1) * len(request.buffer)
    return 2 * (size - 1) * request.words.nbytes // size


class Vote:
    """One vote on its way: runs a protocol over collectives, a request at a time.

    Args:
        protocol: the generator, from `exchange` or `counts`.
        collectives: what carries its requests out.
        name: unique among the votes in flight, the same on all ranks.
        sent: says what one rank sends for a request, as `bytes_sent`.
    """

    def __init__(
        self,
        protocol: Generator[Request, np.ndarray, Any],
        collectives: Collectives,
        name: str,
        sent: Callable[[Request | IntraNode, int, int], Any] = bytes_sent,
    ) -> None:
        self.bytes_sent: Any = 0
        self._sent = sent
        self._protocol, self._collectives, self._name = protocol, collectives, name
        self._phase = 0
        self._handle: Any = None
        self._decision: Any = None
        self._failure: Exception | None = None
        self._continue(None)

    @property
    def decided(self) -> bool:
        """Whether `wait` would return without waiting."""
        return self._handle is None

    def poll(self) -> None:
        """Goes on as far as possible without waiting."""
        self._raise_again()
        while self._handle is not None and self._collectives.done(self._handle):
            self._finish()

    def wait(self) -> Any:
        """Waits for the decision (`messages.Planes`) and returns it."""
        self._raise_again()
        while self._handle is not None:
            self._finish()
        return self._decision

    def _finish(self) -> None:
        """Ends a request, and goes on. A request that has failed is no more, and neither is its vote."""
        try:
            self._continue(self._collectives.finish(self._handle))
        except Exception as error:
            self._failure = error
            raise

    def _raise_again(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _continue(self, result: Any) -> None:
        try:
            request = self._protocol.send(result)
        except StopIteration as stop:
            self._handle, self._decision = None, stop.value
            return
        self.bytes_sent += self._sent(request, self._collectives.size, self._collectives.rank)
        self._handle = self._collectives.start(request, f"{self._name}.{self._phase}")
        self._phase += 1
