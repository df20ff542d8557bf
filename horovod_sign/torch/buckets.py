"""Buckets: parameters that are voted on together, in one pair of bit planes.

A Horovod op costs a millisecond or more before it moves a byte, so many small parameters share a vote. Gradients are
packed soon after they arrive, while they are still in the processor's cache, and many small ones in one call.
"""

from collections.abc import Container
from typing import Protocol

import numpy as np
import torch

from horovod_sign.algebra import native
from horovod_sign.rules import Rule
from horovod_sign.torch import eager
from horovod_sign.torch.layout import like, same_layout
from horovod_sign.torch.optimizers import local_ballot, momentum_buffer, take_step, warming_up
from horovod_sign.torch.planes import DTYPES, has_kernels, kernels
from horovod_sign.voting.messages import Planes

# Gradients are packed when so many coordinates of them have arrived: few calls, and before they have left the cache.
PACK_COORDINATES = 2**20


class Voter(Protocol):
    """The optimizer that votes. Asked anew at each step, since loading a state replaces its groups and its state."""

    param_groups: list[dict]

    def vote_rule(self, group: dict) -> Rule:
        """What the parameters of a group vote on."""

    def vote_state(self, p: torch.Tensor) -> dict:
        """Where the momentum that a parameter votes by is kept."""


class Slot:
    """One parameter of a bucket. Hooks find all they need here, since they run once a parameter in each backward.

    Attributes:
        parameter: the parameter.
        bucket: the bucket it belongs to.
        index: its number in the bucket.
        group: the number of its group in the optimizer.
        offset, length: where in a plane its words start, and how many bytes they are.
        size: how many coordinates it had when the bucket was made.
        taken: whether the bucket has its gradient of this step.
        passes_left: backward passes until its gradient of this step is complete.
        seen: what `pipeline` notes of the gradient that arrived, to see whether it was changed since.
    """

    __slots__ = ("bucket", "group", "index", "length", "offset", "parameter", "passes_left", "seen", "size", "taken")

    def __init__(self, parameter: torch.Tensor, bucket: "Bucket", index: int, group: int, offset: int):
        self.parameter, self.bucket, self.index, self.group = parameter, bucket, index, group
        self.size, self.offset, self.length = parameter.numel(), offset, -(-parameter.numel() // 64) * 8
        self.taken, self.passes_left, self.seen = False, 1, None

    @property
    def words(self) -> slice:
        """Its bytes of a plane."""
        return slice(self.offset, self.offset + self.length)


class Bucket:
    """Parameters that are voted on together.

    Attributes:
        slots: one for each parameter.
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
        self._layout = native.Segments([(0, p.numel()) for p in self.parameters])
        self.plane_bytes, self.coordinates = self._layout.plane_bytes, self._layout.coordinates
        offsets = self._layout.offsets.tolist()
        self.slots = [Slot(p, self, i, group, offsets[i]) for i, (p, group) in enumerate(parameters)]
        self._sign = np.zeros(self.plane_bytes, np.uint8)
        self._nonzero = np.zeros(self.plane_bytes, np.uint8)
        self.forget()

    def arrived(self, slot: Slot, abstain: bool) -> bool:
        """A gradient is there: packs it, now or with the next ones. Returns whether it is now."""
        slot.taken = True
        self._waiting.append(slot)
        self._waiting_coordinates += slot.size
        if self._waiting_coordinates < PACK_COORDINATES:
            return False
        self._pack_waiting(abstain)
        return True

    def pack(self, abstain: bool) -> Planes:
        """This rank's ballot, of all gradients as they are now if they were not packed before; momenta are updated.

        The planes are overwritten by the ballot of the next step.
        """
        self._waiting += [slot for slot in self.slots if not slot.taken]
        self._pack_waiting(abstain)
        self.zeros, self.nans = self._zeros, self._nans
        self.forget()
        self.ballot = Planes(self._sign, self._nonzero if abstain and self.zeros + self.nans else None)
        return self.ballot

    def write_votes(self, decided: Planes):
        """Makes the votes, -1, 0 or +1, the gradients of the parameters."""
        for p in self.parameters:
            if not p.requires_grad:
                p.grad = None  # frozen: what is left there is this rank's own
            elif p.grad is None or p.grad.is_sparse or p.grad.dtype != p.dtype or not same_layout(p, p.grad):
                p.grad = torch.empty_like(p, memory_format=torch.preserve_format)
        for _, dtype, slots in self._alike([slot for slot in self.slots if slot.parameter.requires_grad]):
            if not has_kernels(slots[0].parameter):
                for slot in slots:
                    slot.parameter.grad = eager.votes(*self._piece(decided, slot), slot.parameter)
                continue
            segments = self._segments(slots, [slot.parameter.grad for slot in slots])
            kernels().unpack(dtype, segments, decided.sign, decided.nonzero)

    def take_step(self, decided: Planes):
        """x <- x - lr * (vote + weight_decay * x), straight from the bits, in one pass over the parameters."""
        # Parameters that were frozen since stay where they are, even with weight decay.
        for group, dtype, slots in self._alike([slot for slot in self.slots if slot.parameter.requires_grad]):
            parameters = [slot.parameter for slot in slots]
            if not has_kernels(parameters[0]):
                for slot in slots:
                    take_step(slot.parameter, eager.votes(*self._piece(decided, slot), slot.parameter), group)
                continue
            segments, lr, decay = self._segments(slots, parameters), group["lr"], group["weight_decay"]
            kernels().apply(dtype, segments, decided.sign, decided.nonzero, float(lr), float(decay))

    def forget(self):
        """Expects the gradients of a new step."""
        self._waiting: list[Slot] = []
        self._waiting_coordinates, self._zeros, self._nans = 0, 0, 0
        for slot in self.slots:
            slot.taken = False

    def _pack_waiting(self, abstain: bool):
        self._check_sizes(self._waiting)
        for group, dtype, slots in self._alike(self._waiting):
            rule = self._voter.vote_rule(group)
            # All count all steps, also those without a gradient, so that a group warms up as one.
            warm = self._warm(rule, slots)
            present = [slot for slot in slots if slot.parameter.grad is not None]
            if present:
                self._pack_alike(rule, warm, dtype, present, abstain)
            if len(present) < len(slots):
                self._abstain_for([slot for slot in slots if slot.parameter.grad is None])
        self._waiting, self._waiting_coordinates = [], 0

    def _warm(self, rule: Rule, slots: list[Slot]) -> bool:
        if not rule.warmup_steps:
            return False
        # A list, not a generator: all must count, also after the first that is warm.
        return max([warming_up(rule, self._voter.vote_state(slot.parameter)) for slot in slots])

    def _pack_alike(self, rule: Rule, warm: bool, dtype: str, slots: list[Slot], abstain: bool):
        """Packs gradients of one rule and dtype in one call of a kernel."""
        # Held until the kernel returns, since `_gradient` may have made copies.
        gradients = [_gradient(slot.parameter) for slot in slots]
        if not has_kernels(slots[0].parameter):
            self._pack_elsewhere(rule, warm, slots, gradients, abstain)
            return
        segments, mode = self._segments(slots, gradients), native.ABSTAIN if abstain else native.ONEBIT
        planes = self._sign, self._nonzero if abstain else None
        if not rule.has_momentum:
            zeros, nans = kernels().pack(dtype, mode, segments, *planes)
        else:
            parameters = [slot.parameter for slot in slots]
            momenta = [momentum_buffer(p, self._voter.vote_state(p)).data_ptr() for p in parameters]
            zeros, nans = kernels().interpolate_pack(
                dtype, mode, segments, momenta, rule.beta_vote, rule.beta_state, *planes, vote_gradient=warm
            )
        self._zeros += zeros
        self._nans += nans

    def _pack_elsewhere(self, rule: Rule, warm: bool, slots: list[Slot], gradients, abstain: bool):
        """Packs on the device of the gradients, and copies the bits here."""
        states = [self._voter.vote_state(slot.parameter) for slot in slots]
        voted = [local_ballot(rule, g, s, warm) for g, s in zip(gradients, states, strict=True)]
        sign, nonzero, zeros, nans = eager.pack(voted, not abstain)
        at = 0
        for slot in slots:
            self._sign[slot.words] = sign[at : at + slot.length]
            if nonzero is not None:
                self._nonzero[slot.words] = nonzero[at : at + slot.length]
            at += slot.length
        self._zeros += zeros
        self._nans += nans

    def _piece(self, decided: Planes, slot: Slot) -> Planes:
        """The words of one parameter."""
        return Planes(decided.sign[slot.words], None if decided.nonzero is None else decided.nonzero[slot.words])

    def _abstain_for(self, slots: list[Slot]):
        """Clears the planes of parameters: with `abstain=False` a clear sign bit is a +1, as which a zero counts."""
        for slot in slots:
            self._sign[slot.words] = 0
            self._nonzero[slot.words] = 0
            if slot.size % 64:
                end = slot.offset + slot.length
                self._nonzero[end - 8 : end] = np.packbits(np.arange(64) >= slot.size % 64, bitorder="little")
            self._zeros += slot.size

    def _check_sizes(self, slots: list[Slot]):
        # The kernels trust lengths: a parameter that has grown would be written over its neighbours' bits.
        for slot in slots:
            if slot.parameter.numel() != slot.size:
                raise RuntimeError(
                    f"a parameter had {slot.size} coordinates when hvs.DistributedOptimizer was made and now has "
                    f"{slot.parameter.numel()}: wrap the optimizer after the model has its final shape"
                )

    def _alike(self, slots: list[Slot]) -> list[tuple[dict, str, list[Slot]]]:
        """Slots by group, dtype and device of the parameter: what one call of a kernel can handle."""
        alike: dict[tuple, list[Slot]] = {}
        for slot in slots:
            p = slot.parameter
            alike.setdefault((slot.group, p.dtype, p.device), []).append(slot)
        return [(self._voter.param_groups[group], DTYPES[dtype], batch) for (group, dtype, _), batch in alike.items()]

    def _segments(self, slots: list[Slot], tensors: list[torch.Tensor]) -> native.Segments:
        """The kernels' view of tensors that lie in memory like the parameters of these slots."""
        pointers = np.array([t.data_ptr() for t in tensors], np.uint64)
        return self._layout.subset([slot.index for slot in slots], pointers)


def _gradient(p: torch.Tensor) -> torch.Tensor:
    """The gradient in the layout of its parameter, dense."""
    g = p.grad
    return like(p, g.to_dense() if g.is_sparse else g)


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
