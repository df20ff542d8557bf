"""Buckets: parameters that are voted on together, in one pair of bit planes.

A Horovod op costs a millisecond or more before it moves a byte, so many small parameters share a vote. Parameters of
one dtype and one parameter group form a *part* of a bucket, which the kernels handle in one call.
"""

from typing import NamedTuple, Protocol

import numpy as np
import torch

from horovod_sign.algebra import native
from horovod_sign.rules import Rule
from horovod_sign.torch.layout import like, same_layout
from horovod_sign.torch.optimizers import momentum_buffer, warming_up
from horovod_sign.torch.planes import DTYPES
from horovod_sign.voting.messages import Planes


class Voter(Protocol):
    """The optimizer that votes. Asked anew at each step, since loading a state replaces its groups and its state."""

    param_groups: list[dict]

    def vote_rule(self, group: dict) -> Rule:
        """What the parameters of a group vote on."""

    def vote_state(self, p: torch.Tensor) -> dict:
        """Where the momentum that a parameter votes by is kept."""


class Part(NamedTuple):
    """Parameters of one dtype and parameter group, and where their coordinates are in the planes of the bucket."""

    dtype: str
    group: int
    parameters: list[torch.Tensor]
    offsets: list[int]

    def segments(self, tensors: list[torch.Tensor]) -> native.Segments:
        """The kernels' view of tensors, one for each parameter, in its memory layout."""
        return native.Segments([(t.data_ptr(), t.numel()) for t in tensors], self.offsets)

    def only(self, chosen: list[int]) -> "Part":
        """The part with some of its parameters."""
        return self._replace(parameters=[self.parameters[i] for i in chosen], offsets=[self.offsets[i] for i in chosen])


class Bucket:
    """Parameters that are voted on together.

    Args:
        name: unique within the optimizer.
        parameters: (parameter, number of its group), in the order of their coordinates.
        voter: the optimizer.
    """

    def __init__(self, name: str, parameters: list[tuple[torch.Tensor, int]], voter: Voter):
        self.name, self.parameters = name, [p for p, _ in parameters]
        self._voter = voter
        whole = native.Segments([(0, p.numel()) for p in self.parameters])
        self.plane_bytes, self.coordinates = whole.plane_bytes, whole.coordinates
        self._parts = _parts(parameters, whole.offsets.tolist())
        self._sign = np.zeros(self.plane_bytes, np.uint8)
        self._nonzero = np.zeros(self.plane_bytes, np.uint8)

    def pack(self, abstain: bool) -> Planes:
        """This rank's ballot by the rules, which also updates the momenta. The planes are reused by the next call."""
        zeros, nans = np.sum([self._pack_part(part, abstain) for part in self._parts], axis=0, dtype=np.int64)
        return Planes(self._sign, self._nonzero if abstain and zeros + nans else None)

    def write_votes(self, decided: Planes):
        """Makes the votes, -1, 0 or +1, the gradients of the parameters."""
        for part in self._parts:
            for p in part.parameters:
                if p.grad is None or p.grad.is_sparse or p.grad.dtype != p.dtype or not same_layout(p, p.grad):
                    p.grad = torch.empty_like(p, memory_format=torch.preserve_format)
            segments = part.segments([p.grad for p in part.parameters])
            native.kernels().unpack(part.dtype, segments, decided.sign, decided.nonzero)

    def take_step(self, decided: Planes):
        """x <- x - lr * (vote + weight_decay * x), straight from the bits, in one pass over the parameters."""
        for part in self._parts:
            group = self._voter.param_groups[part.group]
            segments, lr, decay = part.segments(part.parameters), float(group["lr"]), float(group["weight_decay"])
            native.kernels().apply(part.dtype, segments, decided.sign, decided.nonzero, lr, decay)

    def _pack_part(self, part: Part, abstain: bool) -> tuple[int, int]:
        """Writes the planes of a part; returns how many coordinates are zero and how many NaN."""
        rule = self._voter.vote_rule(self._voter.param_groups[part.group])
        # All count all steps, also those without a gradient, so that a group warms up as one.
        warm = any([warming_up(rule, self._voter.vote_state(p)) for p in part.parameters])  # noqa: C419
        present = [i for i, p in enumerate(part.parameters) if p.grad is not None]
        missing = 0
        if len(present) < len(part.parameters):
            missing = self._abstain_where_no_gradient(part)
            part = part.only(present)
        # Held until the kernel returns, since `like` may have made copies.
        gradients = [like(p, p.grad.to_dense() if p.grad.is_sparse else p.grad) for p in part.parameters]
        segments, mode = part.segments(gradients), native.ABSTAIN if abstain else native.ONEBIT
        planes = self._sign, self._nonzero if abstain else None
        if not rule.has_momentum:
            zeros, nans = native.kernels().pack(part.dtype, mode, segments, *planes)
        else:
            momenta = [momentum_buffer(p, self._voter.vote_state(p)).data_ptr() for p in part.parameters]
            zeros, nans = native.kernels().interpolate_pack(
                part.dtype, mode, segments, momenta, rule.beta_vote, rule.beta_state, *planes, vote_gradient=warm
            )
        return zeros + missing, nans

    def _abstain_where_no_gradient(self, part: Part) -> int:
        """Clears the planes of parameters without a gradient; returns how many coordinates those are.

        With `abstain=False` a clear sign bit is a +1, which is what a zero counts as there.
        """
        missing = 0
        for p, offset in zip(part.parameters, part.offsets, strict=True):
            if p.grad is None:
                end = offset + -(-p.numel() // 64) * 8
                self._sign[offset:end] = 0
                self._nonzero[offset:end] = 0
                missing += p.numel()
        return missing


def make_buckets(voter: Voter, capacity: int) -> list[Bucket]:
    """Cuts the trainable parameters of an optimizer into buckets, last parameters first, as backward meets them.

    Args:
        voter: the optimizer.
        capacity: bytes of gradient in a bucket, which a parameter alone may exceed.
    """
    trainable = [(p, i) for i, group in enumerate(voter.param_groups) for p in group["params"] if p.requires_grad]
    batches: list[list[tuple[torch.Tensor, int]]] = [[]]
    filled = 0
    for p, group in reversed(trainable):
        size = p.numel() * p.element_size()
        if batches[-1] and filled + size > capacity:
            batches.append([])
            filled = 0
        batches[-1].append((p, group))
        filled += size
    return [Bucket(f"bucket{i}", batch, voter) for i, batch in enumerate(batches) if batch]


def _parts(parameters: list[tuple[torch.Tensor, int]], offsets: list[int]) -> list[Part]:
    parts: dict[tuple, Part] = {}
    for (p, group), offset in zip(parameters, offsets, strict=True):
        part = parts.setdefault((p.dtype, group), Part(DTYPES[p.dtype], group, [], []))
        part.parameters.append(p)
        part.offsets.append(offset)
    return list(parts.values())
