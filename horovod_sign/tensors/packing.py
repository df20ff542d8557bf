"""This rank's ballot of a bucket: what each parameter votes on by the rule of its group, packed in few calls."""

import functools
from collections.abc import Iterable
from typing import Protocol, cast

import numpy as np
import torch

from horovod_sign.rules import Rule, signsgd, warming_up
from horovod_sign.tensors.ballots import own_ballot
from horovod_sign.tensors.kernels import OnDevices
from horovod_sign.tensors.planes import DTYPES
from horovod_sign.tensors.slots import Batch, Slot, batches_of
from horovod_sign.voting.messages import Planes


class Voter(Protocol):
    """The optimizer that votes. Asked anew at each step, since loading a state replaces its groups and its state."""

    param_groups: list[dict]

    def vote_rule(self, group: dict) -> Rule:
        """What the parameters of a group vote on."""

    def vote_state(self, p: torch.Tensor) -> dict:
        """Where the states that a parameter votes by are kept."""


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
                self._pack_voted(batch, present, abstain)
            elif present:
                self._pack_alike(rule, warm, batch._replace(slots=list(present)), list(present.values()), abstain)
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

    def _pack_voted(self, batch: Batch, voted: dict[Slot, torch.Tensor], abstain: bool) -> None:
        """Packs the signs of these tensors, of slots of a batch, as they are."""
        alike: dict[torch.dtype, list[Slot]] = {}
        for slot, each in voted.items():
            alike.setdefault(each.dtype, []).append(slot)
        for dtype, slots in alike.items():
            signs = batch._replace(dtype=DTYPES[dtype], slots=slots)
            self._pack_alike(signsgd(), False, signs, [voted[slot] for slot in slots], abstain)

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
            nonzero[slot.words] = 0
            if slot.size % 64:
                end = slot.offset + slot.length
                nonzero[end - 8 : end] = np.packbits(np.arange(64) >= slot.size % 64, bitorder="little")
            self.absent += slot.size
