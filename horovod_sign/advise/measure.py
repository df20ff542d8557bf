"""How fast these ranks reach each other, and how fast their kernels are: measured on all at once, in a few seconds.

Each collective that sums and votes travel by is timed at growing sizes, by mpi4py. With the messages and the bytes that
one rank, or the link of one host, sends for it, it takes about

    seconds = messages * latency + bytes * per_byte

`latency` is what a few bytes take; `per_byte` is from the last two sizes, which are large enough that what a link lets
through at once does not count.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from horovod_sign import algebra
from horovod_sign.advise.layout import Layout, bytes_of, messages_of
from horovod_sign.algebra import native
from horovod_sign.voting.library import load_mpi

LONG = 0.4  # seconds that a collective takes at least in the end ...
MOST = 2**26  # ... or bytes
FEW = 2**13
_COORDINATES = 2**21


class Way(NamedTuple):
    """A collective among some ranks: seconds of a message, and of a byte."""

    latency: float
    per_byte: float


class Speeds(NamedTuple):
    """What was measured.

    Attributes:
        between: of each collective among all ranks, if they are on several hosts.
        inside: among the ranks of one host, if it has several.
        leaders: among one rank of each host, which a hierarchical vote goes by.
        op: seconds that an op of Horovod takes, however little it carries.
        vote: seconds to pack a coordinate, tally one coordinate of a ballot, and apply a vote.
        copy: seconds to copy a float32 number.
    """

    between: dict[str, Way] | None
    inside: dict[str, Way] | None
    leaders: dict[str, Way] | None
    op: float
    vote: float
    copy: float


def layout(comm: Any) -> Layout:
    """Ranks and hosts of a communicator of mpi4py; ranks on a host: the most. A collective."""
    host = _of_one_host(comm)
    per_host = max(comm.allgather(host.size))
    hosts = sum(comm.allgather(host.rank == 0))
    host.Free()
    return Layout(comm.size, per_host, hosts)


def speeds(comm: Any, op: float) -> Speeds:
    """Measures. A collective; all ranks get the same. `op`: see `Speeds`."""
    where = layout(comm)
    host = _of_one_host(comm)
    leading = comm.Split(0 if host.rank == 0 else 1, comm.rank)
    inside = _slowest(comm, collectives(host, Layout(host.size, host.size, 1)) if host.size > 1 else None)
    between = collectives(comm, where) if where.hosts > 1 else None
    leaders = None
    if where.hosts > 1 and where.per_host > 1:
        mine = collectives(leading, Layout(leading.size, 1, leading.size)) if host.rank == 0 else None
        leaders = comm.bcast(mine)
    elif where.hosts > 1:
        leaders = between
    vote, copy = kernels(comm)
    host.Free()
    leading.Free()
    return Speeds(between, inside, leaders, op, vote, copy)


def collectives(comm: Any, where: Layout) -> dict[str, Way]:
    """Each collective among the ranks of a communicator. A collective."""
    return {name: _way(comm, name, act, where) for name, act in _COLLECTIVES.items()}


def kernels(comm: Any = None) -> tuple[float, float]:
    """Seconds of a vote's kernels, and of a copy, for each coordinate: the slowest rank's, while all are busy."""
    x = np.random.default_rng(0).standard_normal(_COORDINATES).astype(np.float32)
    other = np.empty_like(x)
    segments = native.Segments([(x, x.size)])

    def vote() -> np.ndarray:
        sign, nonzero, _, _ = algebra.pack_ballot(x)
        half = len(sign) // 2
        decided, _ = algebra.tally([sign[:half], sign[half:]])  # as many coordinates of ballots as are packed
        algebra.kernels().apply("float32", segments, sign, nonzero, 0.0)
        return decided

    def copy() -> None:
        np.copyto(other, x)

    return tuple(_median(comm, act) / _COORDINATES for act in (vote, copy))  # type: ignore[return-value]


def _way(comm: Any, name: str, act: Callable, where: Layout) -> Way:
    smallest = np.zeros((2, comm.size * 8), np.uint8)
    latency = _median(comm, lambda: act(comm, *smallest), 21) / messages_of(name, comm.size)
    size, times = FEW * comm.size, []
    while True:
        buffers = np.ones((2, size), np.uint8)  # written: memory that is used for the first time is slow
        times.append((bytes_of(name, size, where), _median(comm, lambda two=buffers: act(comm, *two), 1)))
        if times[-1][1] >= LONG or 2 * size > MOST:
            break
        size *= 2
    (less, before), (more, after) = times[-2:] if len(times) > 1 else ((0.0, 0.0), times[0])
    return Way(latency, max(after - before, 0.1 * after) / (more - less))


def _allreduce(comm: Any, _: np.ndarray, buffer: np.ndarray) -> None:
    comm.Allreduce(_mpi().IN_PLACE, buffer.view(np.float32))  # as Horovod does


def _alltoall(comm: Any, sent: np.ndarray, received: np.ndarray) -> None:
    comm.Alltoall(sent, received)


def _allgather(comm: Any, sent: np.ndarray, received: np.ndarray) -> None:
    comm.Allgather(sent[: len(sent) // comm.size], received)


_COLLECTIVES = {"allreduce": _allreduce, "alltoall": _alltoall, "allgather": _allgather}


def _median(comm: Any, act: Callable, rounds: int = 5) -> float:
    """Seconds of `act`, the median of some rounds, each as long as on the slowest rank."""
    taken = []
    for _ in range(rounds):
        if comm is not None:
            comm.Barrier()
        start = time.perf_counter()
        act()
        mine = time.perf_counter() - start
        taken.append(mine if comm is None else max(comm.allgather(mine)))
    return statistics.median(taken)


def _slowest(comm: Any, ways: dict[str, Way] | None) -> dict[str, Way] | None:
    """Of what each host has measured, the slowest; None if none has."""
    found = [each for each in comm.allgather(ways) if each is not None]
    if not found:
        return None
    return {
        name: Way(*(max(values) for values in zip(*(each[name] for each in found), strict=True))) for name in found[0]
    }


def _of_one_host(comm: Any) -> Any:
    return comm.Split_type(_mpi().COMM_TYPE_SHARED)


def _mpi() -> Any:
    return load_mpi(initialize=False)
