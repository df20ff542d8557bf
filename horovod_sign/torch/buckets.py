"""Buckets: parameters that are voted on together, in one pair of bit planes.

A Horovod op costs a millisecond or more before it moves a byte, so many small parameters share a vote. Gradients are
packed soon after they arrive, while they are still in the processor's cache, and many small ones in one call.
"""

from collections.abc import Container
from typing import NamedTuple, Protocol

import numpy as np
import torch

from horovod_sign.algebra import native
from horovod_sign.rules import Rule
from horovod_sign.torch import eager
from horovod_sign.torch.layout import like, same_layout
from horovod_sign.torch.optimizers import local_ballot, momentum_buffer, take_step, warming_up
from horovod_sign.torch.planes import DTYPES, has_kernels
from horovod_sign.voting.messages import Planes

# Gradients are packed when so many bytes of them have arrived: few calls, and before they have left the cache.
PACK_BYTES = 2**22


class Voter(Protocol):
    """The optimizer that votes. Asked anew at each step, since loading a state replaces its groups and its state."""

    param_groups: list[dict]

    def vote_rule(self, group: dict) -> Rule:
        """What the parameters of a group vote on."""

    def vote_state(self, p: torch.Tensor) -> dict:
        """Where the momentum that a parameter votes by is kept."""


class Place(NamedTuple):
    """Where a parameter belongs: the number of its group, the byte of the planes where its bits start, its length."""

    group: int
    offset: int
    size: int


class Bucket:
    """Parameters that are voted on together.

    Attributes:
        ballot: this rank's planes, as last packed. Bits after the last coordinate of a parameter never abstain.
        zeros, nans: how many coordinates of it abstain since they are zero (or without a gradient), or NaN.

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
        groups, offsets = [group for _, group in parameters], whole.offsets.tolist()
        places = map(Place, groups, offsets, whole.lengths.tolist())
        self._places = dict(zip(self.parameters, places, strict=True))
        self._sign = np.zeros(self.plane_bytes, np.uint8)
        self._nonzero = np.zeros(self.plane_bytes, np.uint8)
        self.forget()

    def arrived(self, p: torch.Tensor, abstain: bool):
        """The gradient of `p` is there: packs it, now or with the next ones."""
        self._waiting.append(p)
        self._waiting_bytes += p.numel() * p.element_size()
        if self._waiting_bytes >= PACK_BYTES:
            self._pack_waiting(abstain)

    def pack(self, abstain: bool) -> Planes:
        """This rank's ballot, of all gradients as they are now if they were not packed before; momenta are updated.

        The planes are overwritten by the ballot of the next step.
        """
        waiting = set(self._waiting)
        self._waiting += [p for p in self.parameters if p not in self._packed and p not in waiting]
        self._pack_waiting(abstain)
        self.zeros, self.nans = self._zeros, self._nans
        self.forget()
        self.ballot = Planes(self._sign, self._nonzero if abstain and self.zeros + self.nans else None)
        return self.ballot

    def write_votes(self, decided: Planes):
        """Makes the votes, -1, 0 or +1, the gradients of the parameters."""
        trainable = [p for p in self.parameters if p.requires_grad]
        for p in self.parameters:
            if not p.requires_grad:
                p.grad = None  # frozen: what is left there is this rank's own
        for p in trainable:
            if p.grad is None or p.grad.is_sparse or p.grad.dtype != p.dtype or not same_layout(p, p.grad):
                p.grad = torch.empty_like(p, memory_format=torch.preserve_format)
        for _, dtype, parameters in self._alike(trainable):
            if not has_kernels(parameters[0]):
                for p in parameters:
                    p.grad = eager.votes(*self._piece(decided, p), p)
                continue
            segments = self._segments(parameters, [p.grad for p in parameters])
            native.kernels().unpack(dtype, segments, decided.sign, decided.nonzero)

    def take_step(self, decided: Planes):
        """x <- x - lr * (vote + weight_decay * x), straight from the bits, in one pass over the parameters."""
        # Parameters that were frozen since stay where they are, even with weight decay.
        for group, dtype, parameters in self._alike([p for p in self.parameters if p.requires_grad]):
            if not has_kernels(parameters[0]):
                for p in parameters:
                    take_step(p, eager.votes(*self._piece(decided, p), p), group)
                continue
            segments, lr, decay = self._segments(parameters, parameters), group["lr"], group["weight_decay"]
            native.kernels().apply(dtype, segments, decided.sign, decided.nonzero, float(lr), float(decay))

    def forget(self):
        """Expects the gradients of a new step."""
        self._waiting: list[torch.Tensor] = []
        self._waiting_bytes, self._zeros, self._nans = 0, 0, 0
        self._packed: set[torch.Tensor] = set()

    def _pack_waiting(self, abstain: bool):
        self._check_sizes(self._waiting)
        for group, dtype, parameters in self._alike(self._waiting):
            rule = self._voter.vote_rule(group)
            # All count all steps, also those without a gradient, so that a group warms up as one.
            warm = self._warm(rule, parameters)
            present = [p for p in parameters if p.grad is not None]
            if present:
                self._pack_alike(rule, warm, dtype, present, abstain)
            self._abstain_for([p for p in parameters if p.grad is None])
        self._packed.update(self._waiting)
        self._waiting, self._waiting_bytes = [], 0

    def _warm(self, rule: Rule, parameters: list[torch.Tensor]) -> bool:
        if not rule.warmup_steps:
            return False
        # A list, not a generator: all must count, also after the first that is warm.
        return max([warming_up(rule, self._voter.vote_state(p)) for p in parameters])

    def _pack_alike(self, rule: Rule, warm: bool, dtype: str, parameters: list[torch.Tensor], abstain: bool):
        """Packs parameters of one rule and dtype in one call of a kernel."""
        # Held until the kernel returns, since `like` may have made copies.
        gradients = [like(p, p.grad.to_dense() if p.grad.is_sparse else p.grad) for p in parameters]
        if not has_kernels(parameters[0]):
            self._pack_elsewhere(rule, warm, parameters, gradients, abstain)
            return
        segments, mode = self._segments(parameters, gradients), native.ABSTAIN if abstain else native.ONEBIT
        planes = self._sign, self._nonzero if abstain else None
        if not rule.has_momentum:
            zeros, nans = native.kernels().pack(dtype, mode, segments, *planes)
        else:
            momenta = [momentum_buffer(p, self._voter.vote_state(p)).data_ptr() for p in parameters]
            zeros, nans = native.kernels().interpolate_pack(
                dtype, mode, segments, momenta, rule.beta_vote, rule.beta_state, *planes, vote_gradient=warm
            )
        self._zeros += zeros
        self._nans += nans

    def _pack_elsewhere(self, rule: Rule, warm: bool, parameters, gradients, abstain: bool):
        """Packs on the device of the gradients, and copies the bits here."""
        states = [self._voter.vote_state(p) for p in parameters]
        voted = [local_ballot(rule, g, s, warm) for g, s in zip(gradients, states, strict=True)]
        sign, nonzero, zeros, nans = eager.pack(voted, not abstain)
        at = 0
        for p in parameters:
            start, length = self._places[p].offset, -(-p.numel() // 64) * 8
            self._sign[start : start + length] = sign[at : at + length]
            if nonzero is not None:
                self._nonzero[start : start + length] = nonzero[at : at + length]
            at += length
        self._zeros += zeros
        self._nans += nans

    def _piece(self, decided: Planes, p: torch.Tensor) -> Planes:
        """The words of one parameter."""
        start = self._places[p].offset
        words = slice(start, start + -(-p.numel() // 64) * 8)
        return Planes(decided.sign[words], None if decided.nonzero is None else decided.nonzero[words])

    def _abstain_for(self, parameters: list[torch.Tensor]):
        """Clears the planes of parameters: with `abstain=False` a clear sign bit is a +1, as which a zero counts."""
        for p in parameters:
            start = self._places[p].offset
            end = start + -(-p.numel() // 64) * 8
            self._sign[start:end] = 0
            self._nonzero[start:end] = 0
            if p.numel() % 64:
                self._nonzero[end - 8 : end] = np.packbits(np.arange(64) >= p.numel() % 64, bitorder="little")
            self._zeros += p.numel()

    def _check_sizes(self, parameters: list[torch.Tensor]):
        # The kernels trust lengths: a parameter that has grown would be written over its neighbours' bits.
        for p in parameters:
            if p.numel() != self._places[p].size:
                raise RuntimeError(
                    f"a parameter had {self._places[p].size} coordinates when hvs.DistributedOptimizer was made and "
                    f"now has {p.numel()}: wrap the optimizer after the model has its final shape"
                )

    def _alike(self, parameters: list[torch.Tensor]) -> list[tuple[dict, str, list[torch.Tensor]]]:
        """Parameters by group, dtype and device: what one call of a kernel can handle."""
        alike: dict[tuple, list[torch.Tensor]] = {}
        for p in parameters:
            alike.setdefault((self._places[p].group, DTYPES[p.dtype], p.device), []).append(p)
        return [(self._voter.param_groups[group], dtype, batch) for (group, dtype, _), batch in alike.items()]

    def _segments(self, parameters: list[torch.Tensor], tensors: list[torch.Tensor]) -> native.Segments:
        """The kernels' view of tensors that lie in memory like these parameters."""
        memory = [(t.data_ptr(), t.numel()) for t in tensors]
        return native.Segments(memory, [self._places[p].offset for p in parameters])


def make_buckets(voter: Voter, parameters: Container[torch.Tensor], capacity: int, first: int = 0) -> list[Bucket]:
    """Cuts parameters of an optimizer into buckets, last parameters first, as backward meets them.

    Args:
        voter: the optimizer.
        parameters: those of its parameters that want buckets.
        capacity: bytes of gradient in a bucket, which a parameter alone may exceed.
        first: number of the first bucket; their names are numbered on.
    """
    trainable = [(p, i) for i, group in enumerate(voter.param_groups) for p in group["params"] if p in parameters]
    batches: list[list[tuple[torch.Tensor, int]]] = [[]]
    filled = 0
    for p, group in reversed(trainable):
        size = p.numel() * p.element_size()
        if batches[-1] and filled + size > capacity:
            batches.append([])
            filled = 0
        batches[-1].append((p, group))
        filled += size
    return [Bucket(f"bucket{i}", batch, voter) for i, batch in enumerate(batches, first) if batch]
