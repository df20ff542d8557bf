"""Votes of nodes, not of ranks: the ranks of a node average their gradients, and each node has one vote.

What crosses the network is one vote per node, so it costs as much as a vote of so few ranks, and the full-precision
average stays inside a node, in shared memory or NVLink.
"""

from collections.abc import Callable, Generator
from typing import Any

from horovod_sign.voting import messages
from horovod_sign.voting.collectives import Allgather, Average, IntraNode, Request
from horovod_sign.voting.nodes import Nodes

JOINED = (
    "a rank has called hvd.join(), and its node waits for its gradients: with uneven data, leave hierarchical=True out "
    'and give transport="counts", in which joined ranks abstain'
)


def op_name(request: Request | IntraNode, name: str, node: int) -> str:
    """The name of a request's op, the same on all ranks that take part in it.

    Ranks do not all have the same requests, so names are not numbered; a vote has one request of each kind.

    Args:
        name: which `Vote` gives it, that ends in a number.
        node: the number of this rank's.
    """
    name = name.rpartition(".")[0]
    if not isinstance(request, IntraNode):
        return f"{name}.{type(request).__name__}"
    return f"{name}.node{node}.{'share' if isinstance(request.request, Allgather) else 'mean'}"


def vote_of_nodes(
    nodes: Nodes,
    gradients: Callable[[], list],
    pack: Callable[[list], messages.Planes],
    protocol: Callable[..., Generator[Any, Any, Any]],
    abstain: bool,
    ops: Any = messages,
) -> Generator[Request | IntraNode, Any, messages.Planes]:
    """The protocol of one bucket: mean of gradients within nodes, vote among nodes, decision to all ranks of each.

        vote = sign(sum over nodes k of sign(v_k)),    v_k: of the mean over the ranks of node k of their gradients

    Args:
        nodes: where this rank is.
        gradients: what is averaged, the same list on all ranks of a node; not asked where a rank has its node alone.
        pack: the ballot of the node, given the means, or nothing where there are none.
        protocol: `voting.protocols.exchange` or `counts`, among nodes.
        abstain, ops: as in `protocol`.
    """
    alone = nodes.local_set.size() == 1
    tensors = [] if alone else gradients()
    ballot = pack((yield IntraNode(Average(tensors))) if tensors else [])
    decided: Any = None
    if nodes.leads:
        decided = yield from protocol(ballot, nodes.number, nodes.count, abstain=abstain, ops=ops)
    if alone:
        return decided
    length = ballot.sign.shape[0]
    message = ops.split(decided, [(0, length)])[0] if nodes.leads else ballot.sign[:0]
    return ops.parse((yield IntraNode(Allgather(message))), [length])[0]
