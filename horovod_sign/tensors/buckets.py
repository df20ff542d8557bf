"""Buckets: parameters that are voted on together, in one pair of bit planes.

A Horovod op costs a millisecond or more before it moves a byte, so many small parameters share a vote. Gradients are
packed soon after they arrive, while they are still in the processor's cache, and many small ones in one call.
"""

from collections.abc import Mapping

import numpy as np
import torch

from horovod_sign.statistics import nan_report
from horovod_sign.tensors.kernels import OnDevices
from horovod_sign.tensors.layout import Layout
from horovod_sign.tensors.packing import Packing, Voter
from horovod_sign.tensors.slots import Batch, Slot, batches_of
from horovod_sign.tensors.words import Words
from horovod_sign.voting.messages import Planes
from horovod_sign.voting.plan import plan

# Gradients are packed when so many coordinates of them have arrived: few calls, and before they have left the cache.
PACK_COORDINATES = 2**20


class Bucket:
    """Parameters that are voted on together.

    Attributes:
        slots: one for each parameter.
        trainable: the slots of those that were not frozen when all ranks last agreed.
        ballot: this rank's planes, as last packed. Bits after the last coordinate of a parameter never abstain.
        zeros, nans: how many coordinates of it abstain since they are zero (or without a gradient), or NaN.

    Args:
        name: unique within the optimizer.
        parameters: (parameter, what to call it, number of its group), in the order of their coordinates.
        voter: the optimizer.
        layouts: of parameters that were voted on before; the others lie in memory as all ranks have them now.
    """

    def __init__(
        self,
        name: str,
        parameters: list[tuple[torch.Tensor, str, int]],
        voter: Voter,
        layouts: Mapping[torch.Tensor, Layout] | None = None,
    ):
        self.name, self.parameters = name, [p for p, _, _ in parameters]
        words = Words.of(p.numel() for p in self.parameters)
        self.plane_bytes, self.coordinates = words.plane_bytes, sum(words.lengths)
        known = layouts or {}
        self.slots = [
            Slot(p, label, self, i, group, words.offsets[i], known.get(p) or Layout(p))
            for i, (p, label, group) in enumerate(parameters)
        ]
        self.trainable = list(self.slots)
        self.error: Exception | None = None
        self._planes = Planes(np.zeros(self.plane_bytes, np.uint8), np.zeros(self.plane_bytes, np.uint8))
        self._voter, self._on = voter, OnDevices(words, self._planes)
        self._packing = Packing(voter, self._planes, self._on)
        self.forget()

    def arrived(self, slot: Slot) -> bool:
        """A gradient is there. Returns whether so many are now that they should be packed."""
        slot.taken, p = True, slot.parameter
        self._waiting.append(slot)
        planes = self._on.cpu if p.is_cpu else self._on[p.device]
        self._waiting_coordinates += planes.arrived(slot.size)
        return self._waiting_coordinates >= PACK_COORDINATES

    def pack_waiting(self, abstain: bool) -> list[Slot]:
        """Packs the gradients that have arrived, and returns whose they are."""
        packed = self._waiting
        self._pack_waiting(abstain)
        return packed

    def retract(self):
        """Forgets the gradients that have arrived and are not packed: they are to come again."""
        for slot in self._waiting:
            slot.taken = False
        self._waiting, self._waiting_coordinates = [], 0

    def launch(self, abstain: bool):
        """Packs all gradients as they are now if they were not packed before; momenta are updated.

        On a device the work is asked for, and goes on by itself until the ballot is `packed`.
        """
        self._waiting += [slot for slot in self.slots if not slot.taken]
        self._abstain = abstain
        self._pack_waiting(abstain)
        for planes in self._on.values():
            planes.send_to_host()

    @property
    def packed(self) -> bool:
        """Whether `collect` would return without waiting."""
        return all(planes.packed for planes in self._on.values())

    def collect(self) -> Planes:
        """This rank's ballot, after `launch`. The planes are overwritten by the ballot of the next step."""
        counts = [planes.fetch() for planes in self._on.values()]
        self.zeros = self._packing.absent + sum(zeros for zeros, _ in counts)
        self.nans = sum(nans for _, nans in counts)
        self.forget()
        sign, nonzero = self._planes
        self.ballot = Planes(sign, nonzero if self._abstain and self.zeros + self.nans else None)
        return self.ballot

    def pack(self, abstain: bool) -> Planes:
        """This rank's ballot, waited for."""
        self.launch(abstain)
        return self.collect()

    def check_parameters(self):
        """Raises an error if a step cannot be written to some parameter. To be called before any is."""
        for slot in self._not_frozen():
            slot.check_parameter()

    def write_votes(self, decided: Planes):
        """Makes the votes, -1, 0 or +1, the gradients of the parameters."""
        for slot in self.slots:
            p = slot.parameter
            if slot.group is None:
                continue
            if not p.requires_grad:
                p.grad = None  # frozen: what is left there is this rank's own
            elif p.grad is None or p.grad.dtype != p.dtype or not slot.layout.holds(p.grad):
                p.grad = slot.layout.empty(p.dtype, p.device)
        for device, batches in self._to_be_written().items():
            planes = self._on[device]
            received, _ = planes.receive(decided)
            for batch in batches:
                gradients = [slot.parameter.grad for slot in batch.slots]
                planes.unpack(batch.dtype, batch.numbers, gradients, received)

    def take_step(self, decided: Planes):
        """x <- x - lr * (vote + weight_decay * x), straight from the bits, in one pass over the parameters."""
        # Parameters that were frozen since stay where they are, even with weight decay.
        for device, batches in self._to_be_written().items():
            planes, groups = self._on[device], self._voter.param_groups
            received, steps = planes.receive(decided, [_step_of(groups[batch.group]) for batch in batches])
            for batch, step in zip(batches, steps, strict=True):
                # Where they lie as their layouts say; else copies that do.
                values = [slot.parameter if slot.lies_so else slot.copied() for slot in batch.slots]
                planes.apply(batch.dtype, batch.numbers, values, received, step)
                for slot, value in zip(batch.slots, values, strict=True):
                    if not slot.lies_so:
                        slot.parameter.copy_(value)

    def nan_report(self, voter: str) -> str | None:
        """What to tell the user of the first gradient with NaN, before votes are written; None: there is none."""
        for slot in self.slots:
            p, g = slot.parameter, slot.parameter.grad
            nans = 0 if g is None else int(torch.isnan(g.to_dense() if g.is_sparse else g).sum())
            if nans:
                return nan_report(voter, slot.label, nans, p.numel())
        return None

    def forget(self):
        """Expects the gradients of a new step."""
        self._waiting: list[Slot] = []
        self._waiting_coordinates = 0
        self._packing.forget()
        for planes in self._on.values():
            planes.forget()
        for slot in self.slots:
            slot.taken = False

    def _pack_waiting(self, abstain: bool):
        self._packing.pack(self._waiting, abstain)
        self._waiting, self._waiting_coordinates = [], 0

    def _not_frozen(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.group is not None and slot.parameter.requires_grad]

    def _to_be_written(self) -> dict[torch.device, list[Batch]]:
        """What is not frozen, by device."""
        there: dict[torch.device, list[Batch]] = {}
        for batch in batches_of(self._not_frozen()):
            there.setdefault(batch.device, []).append(batch)
        return there


def _step_of(group: dict) -> tuple[float, float]:
    return float(group["lr"]), float(group["weight_decay"])


def groups_of(param_groups: list[dict]) -> dict[torch.Tensor, int]:
    """The number of its group, for each parameter, in their order."""
    return {p: i for i, group in enumerate(param_groups) for p in group["params"]}


def make_buckets(
    voter: Voter,
    parameters: dict[torch.Tensor, str],
    capacity: int,
    first: int = 0,
    layouts: Mapping[torch.Tensor, Layout] | None = None,
) -> list[Bucket]:
    """Cuts parameters of an optimizer into buckets, last parameters first, as backward meets them.

    Args:
        voter: the optimizer.
        parameters: those of its parameters that want buckets, and what to call them.
        capacity: bytes of gradient in a bucket, which a parameter alone may exceed.
        first: number of the first bucket; their names are numbered on.
        layouts: of parameters that were voted on before.
    """
    trainable = [(p, parameters[p], i) for p, i in groups_of(voter.param_groups).items() if p in parameters]
    trainable.reverse()
    buckets = plan((p.numel() * p.element_size() for p, _, _ in trainable), capacity)
    batches = [[trainable[i] for i in bucket] for bucket in buckets]
    return [Bucket(f"bucket{i}", batch, voter, layouts) for i, batch in enumerate(batches, first)]
