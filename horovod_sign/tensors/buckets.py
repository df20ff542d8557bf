"""Buckets: parameters that are voted on together, in one pair of bit planes.

A Horovod op costs a millisecond or more before it moves a byte, so many small parameters share a vote. Gradients are
packed soon after they arrive, while they are still in the processor's cache, and many small ones in one call.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Protocol, cast

import numpy as np
import torch

from horovod_sign.rules import Rule, signsgd, warming_up
from horovod_sign.statistics import nan_report
from horovod_sign.tensors.ballots import own_ballot
from horovod_sign.tensors.kernels import OnDevices
from horovod_sign.tensors.layout import Layout
from horovod_sign.tensors.planes import DTYPES
from horovod_sign.tensors.slots import Batch, Slot, batches_of
from horovod_sign.tensors.words import Words, clear_nonzero
from horovod_sign.voting.messages import Planes

# Gradients are packed when so many coordinates of them have arrived: few calls, and still in the cache of all cores.
PACK_COORDINATES = 2**22


class Voter(Protocol):
    """The optimizer that votes. Asked anew at each step, since loading a state replaces its groups and its state."""

    param_groups: list[dict]

    def vote_rule(self, group: dict) -> Rule:
        """What the parameters of a group vote on."""

    def vote_state(self, p: torch.Tensor) -> dict:
        """Where the states that a parameter votes by are kept."""


class Bucket:
    """Parameters that are voted on together.

    Attributes:
        slots: one for each parameter.
        trainable: the slots of those that were not frozen when all ranks last agreed.
        words: where their bits are.
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
        self.words = words = Words.of(p.numel() for p in self.parameters)
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
                p.grad = slot.new_gradient()
        for device, batches in self._to_be_written().items():
            planes = self._on[device]
            received, _ = planes.receive(decided)
            for batch in batches:
                for dtype, slots in by_dtype({slot: slot.parameter.grad for slot in batch.slots}).items():
                    alike = batch._replace(dtype=DTYPES[dtype], slots=slots)
                    planes.unpack(alike.dtype, alike.numbers, [slot.parameter.grad for slot in slots], received)

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


def by_dtype(tensors: Mapping[Slot, torch.Tensor]) -> dict[torch.dtype, list[Slot]]:
    """Slots whose tensors are of one dtype."""
    alike: dict[torch.dtype, list[Slot]] = {}
    for slot, each in tensors.items():
        alike.setdefault(each.dtype, []).append(slot)
    return alike


def _step_of(group: dict) -> tuple[float, float]:
    return float(group["lr"]), float(group["weight_decay"])


class Packing:
    """Packs what slots of one bucket vote on.

    Attributes:
        absent: how many coordinates of a step abstain since they have no gradient, or none that can be read.

    Args:
        voter: the optimizer.
        ballot: both planes, on the host.
        on: the planes of the bucket on each device.
    """

    def __init__(self, voter: Voter, ballot: Planes, on: OnDevices):
        self._voter, self._ballot, self._on = voter, ballot, on
        self.forget()

    def forget(self) -> None:
        """Expects the gradients of a new step."""
        self.absent = 0

    def pack(self, slots: Iterable[Slot], abstain: bool) -> None:
        """Packs the gradients of slots as they are now; momenta are updated. Slots that have none abstain.

        What cannot be read becomes the `error` of the bucket.
        """
        self._abstain_for([slot for slot in slots if slot.group is None])
        for batch in batches_of(slot for slot in slots if slot.group is not None):
            rule = self._voter.vote_rule(self._voter.param_groups[batch.group])
            # All count all steps, also those without a gradient, so that a group warms up as one.
            warm = self._warm(rule, batch.slots)
            known = rule.betas is not None
            read = self._readable if known else functools.partial(self._voted, warm=warm)
            voted = {slot: read(rule, slot) for slot in batch.slots if slot.parameter.grad is not None}
            present = {slot: each for slot, each in voted.items() if each is not None}
            if not known:
                rule, warm = signsgd(), False  # of what it votes on, the sign
            self._pack_by_dtype(rule, warm, batch, present, abstain)
            if len(present) < len(batch.slots):
                self._abstain_for([slot for slot in batch.slots if slot not in present])

    def _warm(self, rule: Rule, slots: list[Slot]) -> bool:
        if not rule.warmup_steps:
            return False
        # A list, not a generator: all must count, also after the first that is warm.
        return max([warming_up(rule, self._voter.vote_state(slot.parameter)) for slot in slots])

    def _readable(self, rule: Rule, slot: Slot) -> torch.Tensor | None:
        """The gradient of a slot for the kernels, whose momentum then is so too; None, and `error`, if they are not."""
        try:
            for name in rule.states:
                slot.state(name, self._voter.vote_state(slot.parameter))
            return slot.gradient()
        except (RuntimeError, TypeError) as error:
            slot.bucket.error = error
            return None

    def _voted(self, rule: Rule, slot: Slot, warm: bool) -> torch.Tensor | None:
        """What a slot votes on by a rule that no kernel knows; None, and `error`, if that cannot be had."""
        p = slot.parameter
        try:
            states = [slot.state(name, self._voter.vote_state(p)) for name in rule.states]
            with self._on[p.device].working():
                try:
                    voted = own_ballot(rule, slot.gradient(), states, warm)
                except RuntimeError as error:
                    raise RuntimeError(f"{error} (parameter {slot.label})") from error
                if slot.layout.holds(voted):
                    return voted
                return slot.layout.copy(f"the ballot of parameter {slot.label}", voted, voted.dtype, voted.device)
        except (RuntimeError, TypeError) as error:
            slot.bucket.error = error
            return None

    def _pack_by_dtype(
        self, rule: Rule, warm: bool, batch: Batch, voted: dict[Slot, torch.Tensor], abstain: bool
    ) -> None:
        """Packs these tensors, of slots of a batch, which may be of another dtype than the parameters."""
        for dtype, slots in by_dtype(voted).items():
            alike = batch._replace(dtype=DTYPES[dtype], slots=slots)
            self._pack_alike(rule, warm, alike, [voted[slot] for slot in slots], abstain)

    def _pack_alike(self, rule: Rule, warm: bool, batch: Batch, gradients: list[torch.Tensor], abstain: bool) -> None:
        """Packs gradients of one rule, dtype and device in one call of a kernel."""
        planes, what = self._on[batch.device], (batch.dtype, batch.numbers, gradients)
        if not rule.states:
            planes.pack(*what, one_bit=not abstain)
            return
        (name,) = rule.states  # the kernels know no more
        momenta = [self._voter.vote_state(slot.parameter)[name] for slot in batch.slots]
        betas = cast("tuple[float, float]", rule.betas)  # a rule with states whose betas the kernels know has both
        planes.interpolate_pack(*what, momenta, betas, warm, one_bit=not abstain)

    def _abstain_for(self, slots: list[Slot]) -> None:
        """Clears the planes of parameters: with `abstain=False` a clear sign bit is a +1, as which a zero counts."""
        sign, nonzero = self._ballot
        assert nonzero is not None
        for slot in slots:
            sign[slot.words] = 0
            clear_nonzero(nonzero, slot.offset, slot.size)
            self.absent += slot.size
