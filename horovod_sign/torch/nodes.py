"""The nodes that ranks run on, for `hierarchical=True`: ranks of a node, and one rank of each node, as process sets."""

import os
import socket
from typing import Any, NamedTuple

import horovod.torch as hvd

from horovod_sign.launched import warn_if_alone
from horovod_sign.voting.library import AnotherMPI, load_mpi

_sets: dict[tuple[int, ...], Any] = {}

_STATIC = (
    "hierarchical=True needs process sets that Horovod was not given: call "
    'hvd.init(process_sets=hvs.node_process_sets()), or hvd.init(process_sets="dynamic") where there is no MPI'
)
_NO_MPI = (
    "hvs.node_process_sets() asks all ranks for their host names by MPI, before Horovod is initialised, and MPI does "
    'not reach them: launch by mpirun with mpi4py installed, or call hvd.init(process_sets="dynamic") instead'
)


class Nodes(NamedTuple):
    """The nodes of a job.

    Attributes:
        number: this rank's node, counted from 0 by first ranks.
        count: how many there are.
        own: the process set of the ranks of this node.
        first: the process set of the first rank of each node.
        leads: whether this rank is the first of its node, which votes for it.
    """

    number: int
    count: int
    own: Any
    first: Any
    leads: bool


def find_nodes(process_set) -> Nodes:
    """Nodes are told apart by host name. A collective of all ranks, since it makes process sets where there are none.

    Raises:
        ValueError: process_set is not the global one, or Horovod makes no process sets. On all ranks.
    """
    if process_set.size() != hvd.size():
        raise ValueError("hierarchical=True is for votes of all ranks: leave process_set out")
    groups = _groups(hvd.allgather_object(host_name(), name="horovod_sign.torch.hosts"))
    number = next(i for i, ranks in enumerate(groups) if hvd.rank() in ranks)
    # All ranks make all sets, in the same order.
    own = [_process_set(ranks) for ranks in groups]
    first = _process_set([ranks[0] for ranks in groups])
    return Nodes(number, len(groups), own[number], first, groups[number][0] == hvd.rank())


def node_process_sets() -> list[hvd.ProcessSet]:
    """The process sets of `hierarchical=True`, for Horovod: `hvd.init(process_sets=hvs.node_process_sets())`.

    They are the ranks of each node, and the first rank of each node; nodes are told apart by host name. A collective of
    all ranks, by MPI. With `process_sets="dynamic"` they are made when needed, but then Horovod's engine holds a lock
    while all ranks agree, in every cycle, that no set was added: starting an op can take a hundred milliseconds.

    Raises:
        ValueError: MPI does not reach the other ranks (no mpi4py, or not launched by mpirun).
    """
    try:
        MPI = load_mpi()
    except AnotherMPI as error:
        raise ValueError(f"hvs.node_process_sets() needs mpi4py: {error}") from error
    except ImportError as error:
        raise ValueError(_NO_MPI) from error
    warn_if_alone(MPI.COMM_WORLD.size)
    if MPI.COMM_WORLD.size != int(os.environ.get("HOROVOD_SIZE", MPI.COMM_WORLD.size)):
        raise ValueError(_NO_MPI)
    groups = _groups(MPI.COMM_WORLD.allgather(host_name()))
    for ranks in [*groups, [ranks[0] for ranks in groups]]:
        if len(ranks) < MPI.COMM_WORLD.size:
            _sets.setdefault(tuple(ranks), hvd.ProcessSet(ranks))
    return list(_sets.values())


def _groups(names: list[str]) -> list[list[int]]:
    """The ranks of each host, in the order of their first ranks."""
    ranks_of: dict[str, list[int]] = {}
    for rank, name in enumerate(names):
        ranks_of.setdefault(name, []).append(rank)
    return list(ranks_of.values())


def host_name() -> str:
    """What tells this rank's node from others."""
    return socket.gethostname()


def _process_set(ranks: list[int]):
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
