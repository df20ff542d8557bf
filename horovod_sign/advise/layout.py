"""Where ranks are, and what a collective then sends, by the algorithms of large messages."""

from typing import NamedTuple


class Layout(NamedTuple):
    """So many ranks, so many of them on a host, so many hosts."""

    ranks: int
    per_host: int
    hosts: int


def grown(where: Layout, ranks: int) -> Layout:
    """As many ranks on a host as there are, and as many hosts as that takes."""
    per_host = min(where.per_host, ranks)
    return Layout(ranks, per_host, -(-ranks // per_host))


def messages_of(collective: str, ranks: int) -> int:
    """Messages of a rank, one after the other: in a ring, or one to each other rank."""
    return (2 if collective == "allreduce" else 1) * (ranks - 1)


def bytes_of(collective: str, size: float, where: Layout) -> float:
    """Bytes that a rank sends, or, where there are several hosts, that a host's link does.

    Args:
        collective: of which a ring leaves each host once, and an alltoall from each of the host's ranks.
        size: bytes that are summed; or that a rank sends to all ranks together; or that all ranks bring together.
    """
    share = (where.ranks - 1) / where.ranks
    if collective == "allreduce":
        return 2 * share * size
    if collective == "alltoall" and where.hosts > 1:
        return where.per_host * (where.ranks - where.per_host) / where.ranks * size
    return share * size
