"""Votes of nodes by Horovod for PyTorch: see `voting.hierarchy`."""

from collections.abc import Callable, Generator
from typing import Any

import horovod.torch as hvd
import torch

from horovod_sign.tensors.buckets import Bucket
from horovod_sign.tensors.layout import check_memory
from horovod_sign.tensors.slots import Slot, gradient_dtype
from horovod_sign.torch.collectives import HorovodCollectives
from horovod_sign.torch.pipeline import Pipeline
from horovod_sign.torch.presence import Presence
from horovod_sign.voting import hierarchy
from horovod_sign.voting.collectives import Allgather, IntraNode, Request
from horovod_sign.voting.messages import Planes
from horovod_sign.voting.nodes import Nodes

# What the engine averages as it is; 16-bit gradients are averaged in float32, as is what is not in one piece.
_FULL_PRECISION = (torch.float32, torch.float64)


class NodeCollectives:
    """`voting.collectives.Collectives` of nodes: a request goes to the first ranks of all nodes, or stays in one.

    Every handle is (the collectives that it is of, their handle).
    """

    ordered = False

    def __init__(self, nodes: Nodes) -> None:
        self.rank, self.size = nodes.number, nodes.count
        self._local_set = nodes.local_set
        self._own = HorovodCollectives(nodes.local_set)
        self._first: Any = HorovodCollectives(nodes.cross_set) if nodes.leads else None

    def start(self, request: Request | IntraNode, name: str) -> tuple[Any, Any]:
        name = hierarchy.op_name(request, name, self.rank)
        if not isinstance(request, IntraNode):
            return self._first, self._first.start(request, name)
        if isinstance(request.request, Allgather):
            return self._own, self._own.start(request.request, name)
        tensors, local_set = request.request.tensors, self._local_set
        return None, hvd.grouped_allreduce_async_(tensors, name=name, op=hvd.Average, process_set=local_set)

    def done(self, handle: tuple[Any, Any]) -> bool:
        return hvd.poll(handle[1])

    def finish(self, handle: tuple[Any, Any]) -> Any:
        collectives, handle = handle
        return hvd.synchronize(handle) if collectives is None else collectives.finish(handle)

    def idle(self) -> None:
        self._own.idle()


class NodePipeline(Pipeline):
    """The votes of one optimizer that are those of nodes, on gradients that are averaged first.

    Args:
        nodes: those that vote.
        pipeline: as of `Pipeline`; the collectives are of nodes too.
    """

    packs_in_backward = False  # but after the mean
    carries_late_notices = True

    def __init__(self, nodes: Nodes, *pipeline: Any) -> None:
        self._nodes = nodes
        super().__init__(*pipeline)

    def _attend(self) -> Presence:
        return Presence(f"{self.name}.present", self.notice, hierarchy.JOINED)

    def _launch(self, bucket: Any) -> None:
        pass

    def _running(self, bucket: Any) -> Generator[Any, Any, Planes]:
        return vote_of_nodes(self._nodes, bucket, self._protocol_of(bucket), self._abstain)

    def _watch(self, packed: list[Slot]) -> None:
        # The mean comes into the gradients, which torch does not notice unless it is by a copy.
        gradients = [(slot, slot.parameter.grad) for slot in packed]
        self._edits.note([slot for slot, g in gradients if g is not None and averaged_in_place(g)], final=False)


def vote_of_nodes(
    nodes: Nodes, bucket: Bucket, protocol: Callable[..., Generator[Any, Any, Any]], abstain: bool
) -> Generator[Any, Any, Planes]:
    """`voting.hierarchy.vote_of_nodes` of a bucket, whose gradients become the means of the node."""
    slots = [slot for slot in bucket.trainable if slot.size]  # the same on all ranks of the node

    def pack(means: list[torch.Tensor]) -> Planes:
        if means:
            _put_back(slots, means)
        return bucket.pack(abstain)

    return hierarchy.vote_of_nodes(
        nodes, lambda: [_to_be_averaged(slot) for slot in slots], pack, protocol, abstain=abstain
    )


def averaged_in_place(gradient: torch.Tensor) -> bool:
    """Whether the engine writes the mean of the node right into a gradient; else it is copied there."""
    whole = gradient.is_contiguous() and not gradient.is_neg() and gradient.data_ptr() != 0
    return gradient.dtype in _FULL_PRECISION and whole


@torch.no_grad()
def _to_be_averaged(slot: Slot) -> torch.Tensor:
    """The gradient of a parameter, or a copy of it that the engine can average. One that is missing counts as zeros.

    So does one that cannot be read, of which the bucket then has the `error`: the other ranks of the node wait.
    """
    p = slot.parameter
    try:
        return _readable(slot)
    except (RuntimeError, TypeError) as error:
        slot.bucket.error, p.grad = error, None
        return slot.layout.empty(torch.promote_types(gradient_dtype(p), torch.float32), p.device).zero_()


def _readable(slot: Slot) -> torch.Tensor:
    p = slot.parameter
    if p.shape != slot.layout.shape:
        slot.check_parameter()
    if p.grad is None:
        p.grad = torch.zeros_like(p, dtype=gradient_dtype(p), memory_format=torch.preserve_format)
    elif p.grad.is_sparse:
        p.grad = p.grad.to_dense()
    g = p.grad
    check_memory(f"the gradient of parameter {slot.label}", g)
    if averaged_in_place(g):
        return g
    mean = torch.empty(g.shape, dtype=torch.promote_types(g.dtype, torch.float32), device=g.device)
    return mean.copy_(g)


@torch.no_grad()
def _put_back(slots: list[Slot], means: list[torch.Tensor]) -> None:
    for slot, mean in zip(slots, means, strict=True):
        p = slot.parameter
        if p.shape != mean.shape:
            continue
        if p.grad is None:  # it could not be read, or was dropped since, after an exception in backward
            p.grad = torch.empty_like(p, dtype=gradient_dtype(p), memory_format=torch.preserve_format)
        if mean is not p.grad:
            p.grad.copy_(mean)
