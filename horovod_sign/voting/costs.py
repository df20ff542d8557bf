"""What each way of reducing n coordinates over M ranks sends: messages and bytes of one rank, in closed form.

In the alpha-beta model a rank that sends `messages` one after the other, `bytes` in all, needs about

    messages * alpha + bytes * beta        alpha: seconds that a message takes, beta: seconds a byte (1 / bandwidth)

The algorithms assumed are those of large messages: rings for allreduce and allgather, M-1 direct messages for alltoall.
Only payload is counted, as `protocols.bytes_sent` does: not what a library sends to set a collective up.
"""

from typing import NamedTuple

from horovod_sign.algebra import counts_bits
from horovod_sign.algebra import plane_bytes as plane_bytes

_WORD = 8  # bytes; planes are whole 64-bit words


class Cost(NamedTuple):
    """What one rank sends to others; costs of phases that follow each other add up with `plus`."""

    messages: int
    bytes: int

    def plus(self, other: "Cost") -> "Cost":
        """Both, one after the other."""
        return Cost(self.messages + other.messages, self.bytes + other.bytes)


def allreduce_cost(nbytes: int, size: int) -> Cost:
    """A ring allreduce of `nbytes`: 2 (M-1) messages of nbytes / M each."""
    return Cost(2 * (size - 1), 2 * (size - 1) * nbytes // size)


def allgather_cost(nbytes: int, size: int) -> Cost:
    """A ring allgather to which each rank brings `nbytes`: M-1 messages of nbytes each."""
    return Cost(size - 1, (size - 1) * nbytes)


def usual_planes(size: int, abstain: bool) -> tuple[int, int]:
    """The planes of (ballots, votes) when gradients are nowhere exactly 0: (1, 2) if votes can tie, else (1, 1).

    M ballots of +1 and -1 can tie only if M is even, and then random ones do in C(M, M/2) / 2**M of the coordinates,
    about sqrt(2 / (pi M)): in nearly every chunk there is a tie, and one is enough for a second plane. With
    `abstain=False` there never is one.
    """
    return 1, 2 if abstain and size > 1 and size % 2 == 0 else 1


def exchange_cost(n: int, size: int, planes: tuple[int, int] = (1, 1)) -> Cost:
    """The exchange: alltoall of ballots, one message to each other rank, then allgather of the decided chunks.

    With the plane's P = 8 ceil(n / 64) bytes, the chunk's C = 8 ceil(P / 8M), and p, q planes in the two phases:

        alltoall    M-1 messages    (M-1) + p (P - C) bytes
        allgather   M-1 messages    (M-1) (1 + q C) bytes

    which is 2 (M-1)/M * n/8 bytes for one plane, when M divides the plane's words. Otherwise the last chunks are
    shorter, and this is the cost of rank 0, whose chunk is as long as any.

    Args:
        n: coordinates.
        size: M, the ranks that vote.
        planes: planes, 1 or 2, of ballots and of decided votes: (1, 1) is the least, (2, 2) the most. See
            `usual_planes`.
    """
    if size == 1:
        return Cost(0, 0)
    whole = plane_bytes(n)
    chunk = min(whole, _WORD * -(-whole // (_WORD * size)))
    ballots = Cost(size - 1, size - 1 + planes[0] * (whole - chunk))
    return ballots.plus(allgather_cost(1 + planes[1] * chunk, size))


def counts_cost(n: int, size: int) -> Cost:
    """Counts: a ring allreduce of b bits a coordinate and one word, b in {2, 4, 8, 16} the least with 2**b > 2M.

    Raises:
        ValueError: more than 32,767 ranks.
    """
    return allreduce_cost(plane_bytes(n) * counts_bits(size) + _WORD, size)
