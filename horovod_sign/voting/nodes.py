"""The nodes that ranks run on, for `hierarchical=True`: ranks of a node, and one rank of each node, as process sets.

A node is what MPI and Horovod mean by it, ranks that share memory, and no host name: containers on several machines may
have the same, and on one machine different ones. Horovod splits its communicator by MPI_COMM_TYPE_SHARED; its
`local_rank` is the rank in that, and its `cross_rank` the rank among those with the same local rank: not the number of
the node, where nodes have different numbers of ranks.

    HOROVOD_SIGN_NODE   in the environment of all ranks: the name of the node that each counts as on, whatever shares
                        memory (parts of a large machine, or nodes to be simulated on one)
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from horovod_sign.launched import warn_if_alone
from horovod_sign.voting.library import AnotherMPI, load_mpi, mpi_beside

OVERRIDE = "HOROVOD_SIGN_NODE"

_sets: dict[tuple[int, ...], Any] = {}

_STATIC = (
    "hierarchical=True needs process sets that Horovod was not given: call "
    'hvd.init(process_sets=hvs.node_process_sets()), or hvd.init(process_sets="dynamic") where there is no MPI'
)
_NO_MPI = (
    "hvs.node_process_sets() asks all ranks by MPI which of them share memory, before Horovod is initialised, and MPI "
    'does not reach them: launch by mpirun with mpi4py installed, or call hvd.init(process_sets="dynamic") instead'
)
_UNCLEAR = (
    "hierarchical=True cannot tell by Horovod's local_rank and cross_rank which ranks share a node: install mpi4py and "
    f"call hvd.init(process_sets=hvs.node_process_sets()), or name each rank's node in {OVERRIDE}"
)
_SOME = f"{OVERRIDE} names the nodes of some ranks and not of others: set it for all ranks, or for none"


class Nodes(NamedTuple):
    """The nodes of a job.

    Attributes:
        number: this rank's node, counted from 0 by first ranks.
        count: how many there are.
        local_set: the process set of the ranks of this node.
        cross_set: the process set of the first rank of each node.
        leads: whether this rank is the first of its node, which votes for it.
    """

    number: int
    count: int  # type: ignore[assignment]  # in place of tuple's
    local_set: Any
    cross_set: Any
    leads: bool


class Place(NamedTuple):
    """What Horovod says of where a rank is."""

    local_rank: int
    local_size: int
    cross_rank: int


def find_nodes(hvd: Any) -> Nodes:
    """A collective of all ranks, since it makes process sets where there are none.

    Args:
        hvd: Horovod for the framework.

    Raises:
        ValueError: Horovod makes no process sets, or it is not clear who shares a node. On all ranks.
    """
    groups = _groups(hvd)
    number = next(i for i, ranks in enumerate(groups) if hvd.rank() in ranks)
    # All ranks make all sets, in the same order.
    own = [_process_set(hvd, ranks) for ranks in groups]
    first = _process_set(hvd, [ranks[0] for ranks in groups])
    return Nodes(number, len(groups), own[number], first, groups[number][0] == hvd.rank())


def node_process_sets() -> list[Any]:
    """The process sets of `hierarchical=True`, for Horovod: `hvd.init(process_sets=hvs.node_process_sets())`.

    They are the ranks of each node, and the first rank of each node; a node is ranks that share memory, or what
    HOROVOD_SIGN_NODE names. A collective of all ranks, by MPI. With `process_sets="dynamic"` they are made when needed,
    but then Horovod's engine holds a lock while all ranks agree, in every cycle, that no set was added: starting an op
    can take a hundred milliseconds.

    Raises:
        ValueError: MPI does not reach the other ranks (no mpi4py, or not launched by mpirun).
    """
    from horovod.common.process_sets import ProcessSet  # the same for all frameworks, of which each adapter has one

    try:
        MPI = load_mpi()
    except AnotherMPI as error:
        raise ValueError(f"hvs.node_process_sets() needs mpi4py: {error}") from error
    except ImportError as error:
        raise ValueError(_NO_MPI) from error
    warn_if_alone(MPI.COMM_WORLD.size)
    if MPI.COMM_WORLD.size != int(os.environ.get("HOROVOD_SIZE", MPI.COMM_WORLD.size)):
        raise ValueError(_NO_MPI)
    groups = _named(MPI.COMM_WORLD.allgather(os.environ.get(OVERRIDE))) or sharing_memory(MPI)
    for ranks in [*groups, [ranks[0] for ranks in groups]]:
        if len(ranks) < MPI.COMM_WORLD.size:
            _sets.setdefault(tuple(ranks), ProcessSet(ranks))
    return list(_sets.values())


def sharing_memory(MPI: Any) -> list[list[int]]:
    """The ranks of each node, as MPI sees them. A collective of all ranks.

    Args:
        MPI: mpi4py's module.
    """
    node = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    ranks = MPI.COMM_WORLD.allgather(tuple(node.allgather(MPI.COMM_WORLD.rank)))
    node.Free()
    return [sorted(each) for each in dict.fromkeys(ranks)]


def by_places(places: Sequence[Place]) -> list[list[int]] | None:
    """The ranks of each node, as Horovod has numbered them; None if the numbers fit no nodes.

    The ranks with local rank l are, in order of their cross ranks, on the nodes that have more than l ranks.
    """
    leaders = sorted((place.cross_rank, rank) for rank, place in enumerate(places) if place.local_rank == 0)
    groups = [[rank] for _, rank in leaders]
    for rank, place in enumerate(places):
        large = [group for group in groups if places[group[0]].local_size > place.local_rank]
        if place.local_rank and place.cross_rank < len(large):
            large[place.cross_rank].append(rank)
    alike = all(places[rank].local_size == len(group) for group in groups for rank in group)
    return groups if alike and sum(map(len, groups)) == len(places) else None


def _groups(hvd: Any) -> list[list[int]]:
    """The ranks of each node, in the order of their first ranks."""
    MPI = mpi_beside(hvd)
    place = Place(hvd.local_rank(), hvd.local_size(), hvd.cross_rank())
    mine = os.environ.get(OVERRIDE), MPI is not None, place
    named, by_mpi, places = zip(*hvd.allgather_object(mine, name="horovod_sign.nodes"), strict=True)
    groups = _named(named) or (sharing_memory(MPI) if all(by_mpi) else by_places(places))
    if groups is None:
        raise ValueError(_UNCLEAR)
    return groups


def _named(names: Sequence[str | None]) -> list[list[int]]:
    """The ranks of each node by its name; none if there are no names."""
    if any(names) and not all(names):
        raise ValueError(_SOME)
    ranks_of: dict[Any, list[int]] = {}
    for rank, name in enumerate(names if all(names) else ()):
        ranks_of.setdefault(name, []).append(rank)
    return list(ranks_of.values())


def _process_set(hvd: Any, ranks: list[int]) -> Any:
    if len(ranks) == hvd.size():
        return hvd.global_process_set
    known = _sets.get(tuple(ranks))
    if known is None or known.process_set_id is None:
        try:
            known = _sets[tuple(ranks)] = hvd.add_process_set(ranks)
        except ValueError as error:
            if "duplicate" in str(error):
                raise ValueError(
                    f"hierarchical=True makes a process set of ranks {ranks}, but there already is one: remove it with "
                    "hvd.remove_process_set"
                ) from error
            raise ValueError(_STATIC) from error
    return known
