"""The two ways a vote travels, each a generator over the requests of `collectives`, and `Vote`, which runs one.

Both decide `sign(sum over the M ranks of sign(x))` (Bernstein et al. 2018, arXiv 1802.04434, Algorithm 3) exactly, so
their decisions are the same bit for bit. They know no array library: `ops` is `messages` (NumPy and the native
kernels) or another framework's functions of the same names.
"""

from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from horovod_sign.algebra import counts_bits
from horovod_sign.voting import messages
from horovod_sign.voting.collectives import Allgather, Allreduce, Alltoall, Collectives, IntraNode, Request

TRANSPORTS = ("auto", "exchange", "counts")


def check_transport(transport: Any, known: tuple[str, ...] = TRANSPORTS) -> None:
    """Raises ValueError unless it is one of those that are known."""
    if not isinstance(transport, str) or transport not in known:
        raise ValueError(f"transport must be one of {', '.join(map(repr, known))}, got {transport!r}")


def exchange(
    ballot: Any, rank: int, size: int, *, abstain: bool, ops: Any = messages
) -> Generator[Request, Any, messages.Planes]:
    """Reduce-scatter and allgather, in bits: alltoall of ballots, each rank tallies its chunk, allgather of results.

    A rank sends (M-1)/M * n/8 bytes in each of the two phases, and up to twice that where ballots abstain (first
    phase) or votes tie (second phase).

    Args:
        ballot: this rank's planes.
        rank, size: this rank and how many vote.
        abstain: whether ties are 0; else they count as +1, and no second plane is ever sent.
        ops: the functions on arrays.
    """
    if size == 1:
        return ops.tally([ballot], abstain=abstain)
    bounds = messages.chunk_bounds(ballot.sign.shape[0], size)
    lengths = [stop - start for start, stop in bounds]
    ballots = ops.parse((yield Alltoall(*ops.split(ballot, bounds))), [lengths[rank]] * size)
    decided = ops.tally(ballots, abstain=abstain)
    results = yield Allgather(ops.split(decided, [(0, lengths[rank])])[0])
    return ops.join(ops.parse(results, lengths))


def counts(
    ballot: Any, rank: int, size: int, *, abstain: bool, ops: Any = messages
) -> Generator[Request, Any, messages.Planes]:
    """Allreduce of bit-counts: sign + 1 (0, 1 or 2) of each coordinate in a field that can hold the sum over all ranks.

    Fields are b bits wide, b in {2, 4, 8, 16} the smallest with 2**b > 2*M, so a plain integer sum adds them all
    without a carry. A trailing field counts the voters V; a field above V is +1, below is -1, equal is 0. A rank that
    contributes zeros (it has joined) is no voter.

    Args: as in `exchange`.
    """
    bits = counts_bits(size)
    words = ops.encode_fields(ballot, bits)
    summed = (yield Allreduce(words)) if size > 1 else words
    return ops.decode_fields(summed, bits, abstain=abstain)


PROTOCOLS = {"exchange": exchange, "counts": counts}


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
