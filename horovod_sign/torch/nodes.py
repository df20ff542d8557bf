"""The nodes that ranks run on, for `hierarchical=True`: ranks of a node, and one rank of each node, as process sets."""

import socket
from typing import Any, NamedTuple

import horovod.torch as hvd

_sets: dict[tuple[int, ...], Any] = {}

_STATIC = (
    "hierarchical=True makes process sets, and Horovod was not told that there will be some: call "
    'hvd.init(process_sets="dynamic")'
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
    names = hvd.allgather_object(host_name(), name="horovod_sign.torch.hosts")
    ranks_of: dict[str, list[int]] = {}
    for rank, name in enumerate(names):
        ranks_of.setdefault(name, []).append(rank)
    groups = list(ranks_of.values())
    number = next(i for i, ranks in enumerate(groups) if hvd.rank() in ranks)
    # All ranks make all sets, in the same order.
    own = [_process_set(ranks) for ranks in groups]
    first = _process_set([ranks[0] for ranks in groups])
    return Nodes(number, len(groups), own[number], first, groups[number][0] == hvd.rank())


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
