"""The two ways a vote travels, each a generator over the requests of `collectives`.

Both decide `sign(sum over the M ranks of sign(x))` (Bernstein et al. 2018, arXiv 1802.04434, Algorithm 3) exactly, so
their decisions are the same bit for bit. They know no array library: `ops` is `messages` (NumPy and the native
kernels) or another framework's functions of the same names.
"""

from collections.abc import Generator
from typing import Any

from horovod_sign.algebra import counts_bits
from horovod_sign.voting import messages
from horovod_sign.voting.collectives import Allgather, Allreduce, Alltoall, Request

TRANSPORTS = ("auto", "exchange", "counts")


def check_transport(transport: Any) -> None:
    """Raises ValueError unless it is one of TRANSPORTS."""
    if not isinstance(transport, str) or transport not in TRANSPORTS:
        raise ValueError(f"transport must be one of {', '.join(map(repr, TRANSPORTS))}, got {transport!r}")


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
