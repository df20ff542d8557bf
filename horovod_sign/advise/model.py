"""What a step's communication takes by each method, from measured speeds: nothing overlaps with anything.

float32, float16    ops of Horovod, an allreduce of 4n or 2n bytes, and copies into and out of its buffer
counts              an op for each bucket, an allreduce of b bits a coordinate, and the kernels
exchange, one bit   two ops for each bucket, an alltoall and an allgather of planes, and the kernels; small models
                    go past Horovod's engine
hierarchical        an allreduce of float32 inside each host, an exchange between hosts, the votes back inside
"""

import math
from typing import Any

from horovod_sign.advise.layout import Layout, bytes_of, messages_of
from horovod_sign.advise.measure import Speeds, Way
from horovod_sign.algebra import counts_bits
from horovod_sign.options import BUCKET_CAP_MB, bucket_bytes
from horovod_sign.voting import choice, costs

FUSED_BYTES = 2**27  # that Horovod sums at once
METHODS = ("float32", "float16", "counts", "exchange", "one bit", "hierarchical")
VOTES = METHODS[2:]


def predict(method: str, n: int, where: Layout, speeds: Speeds) -> float | None:
    """Seconds that a step waits for communication and for what goes with it. None: there is no such way there.

    Args:
        method: of METHODS.
        n: coordinates.
        where: ranks and hosts.
        speeds: measured, or assumed.
    """
    ways = speeds.between if where.hosts > 1 else speeds.inside
    if ways is None or where.ranks < 2:
        return None
    if method in ("float32", "float16"):
        size = (4 if method == "float32" else 2) * n
        return _allreduce(size, math.ceil(size / FUSED_BYTES), where, ways, speeds.op) + 3 * n * speeds.copy
    if method == "counts":
        if where.ranks > 32767:
            return None
        size = counts_bits(where.ranks) * n / 8
        return _allreduce(size, _buckets(n), where, ways, speeds.op) + 2 * n * speeds.vote
    if method == "hierarchical":
        return _hierarchical(n, where, speeds)
    return _exchange(n, where, ways, speeds, abstain=method == "exchange")


def sent_bytes(method: str, n: int, where: Layout) -> int:
    """Payload that a rank sends in a step; hierarchical: over the network, where it votes for its host."""
    if method in ("float32", "float16"):
        return costs.allreduce_cost((4 if method == "float32" else 2) * n, where.ranks).bytes
    if method == "counts":
        return costs.counts_cost(n, where.ranks).bytes
    voters = where.hosts if method == "hierarchical" else where.ranks
    return costs.exchange_cost(n, voters, costs.usual_planes(voters, method != "one bit")).bytes


def _buckets(n: int) -> int:
    return max(1, math.ceil(4 * n / bucket_bytes(BUCKET_CAP_MB)))


def _seconds(collective: str, size: float, times: int, where: Layout, ways: dict[str, Way]) -> float:
    """Of a collective in so many parts."""
    way = ways[collective]
    messages = times * messages_of(collective, where.ranks)
    return messages * way.latency + bytes_of(collective, size, where) * way.per_byte


def _allreduce(size: float, times: int, where: Layout, ways: Any, op: float) -> float:
    return times * op + _seconds("allreduce", size, times, where, ways)


def _exchange(n: int, where: Layout, ways: Any, speeds: Speeds, abstain: bool) -> float:
    ballots, votes = costs.usual_planes(where.ranks, abstain)
    times, plane = _buckets(n), costs.plane_bytes(n)
    direct = choice.choose(n, where.ranks, abstain, can_go_direct=True) == "direct"
    return (
        (0.0 if direct else 2 * times * speeds.op)
        + _seconds("alltoall", ballots * plane, times, where, ways)
        + _seconds("allgather", votes * plane, times, where, ways)
        + n * speeds.vote
    )


def _hierarchical(n: int, where: Layout, speeds: Speeds) -> float | None:
    if where.hosts < 2 or where.per_host < 2 or speeds.inside is None or speeds.leaders is None:
        return None
    host = Layout(where.per_host, where.per_host, 1)
    of_hosts = Layout(where.hosts, 1, where.hosts)
    times = _buckets(n)
    return (
        2 * times * speeds.op
        + _seconds("allreduce", 4 * n, times, host, speeds.inside)
        + _seconds("allgather", costs.plane_bytes(n), times, host, speeds.inside)
        + _exchange(n, of_hosts, speeds.leaders, speeds, abstain=True)
        + n * speeds.copy
    )
