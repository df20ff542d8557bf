"""What `transport="auto"` means: the way of voting that a step waits for least, by a model of what each costs.

A step waits for an op of Horovod's engine, however little it carries, about `OP_SECONDS` (one round of the engine's
thread, in which all ranks agree on what is ready; 0.8 ms is what `python -m benchmarks scale` fits to measurements
with 2 to 8 ranks); and for bytes at `BYTES_PER_SECOND`, a slow network's, since on a
faster one all ways are closer to each other. With B the bytes of `costs`:

    exchange    2 OP + B_exchange / RATE       two ops
    counts      1 OP + B_counts / RATE         one op, two to twelve times the bytes
    direct      B_exchange / RATE              the exchange by MPI itself: no engine, but nothing overlaps with backward

Votes overlap with backward in the engine, and not by MPI itself. So for the direct way all bytes count, and for the
others only what they cost beyond the exchange: the model asks whether leaving ops out is worth that.
"""

from horovod_sign.algebra import counts_bits
from horovod_sign.voting import costs

OP_SECONDS = 0.8e-3
BYTES_PER_SECOND = 125e6


def choose(coordinates: int, size: int, abstain: bool, can_go_direct: bool) -> str:
    """ "direct", "counts" or "exchange".

    Args:
        coordinates: how many are voted on in a step.
        size: the ranks that vote.
        abstain: whether ties are 0, which takes a second plane where ranks are even.
        can_go_direct: whether MPI itself reaches all ranks.
    """
    if size == 1:
        return "exchange"  # of nothing: the own ballot is tallied at once
    exchanged = costs.exchange_cost(coordinates, size, costs.usual_planes(size, abstain)).bytes
    if can_go_direct and exchanged / BYTES_PER_SECOND < 2 * OP_SECONDS:
        return "direct"
    more = costs.counts_cost(coordinates, size).bytes - exchanged if _can_count(size) else float("inf")
    return "counts" if more / BYTES_PER_SECOND < OP_SECONDS else "exchange"


def _can_count(size: int) -> bool:
    try:
        counts_bits(size)
    except ValueError:
        return False
    return True
