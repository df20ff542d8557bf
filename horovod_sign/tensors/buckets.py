"""Buckets: parameters that are voted on together, in one pair of bit planes.

A Horovod op costs a millisecond or more before it moves a byte, so many small parameters share a vote. Gradients are
packed soon after they arrive, while they are still in the processor's cache, and many small ones in one call.
"""

import contextlib
import functools
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch

from horovod_sign.algebra import native
from horovod_sign.rules import Rule, signsgd, warming_up
from horovod_sign.statistics import nan_report
from horovod_sign.tensors.ballots import own_ballot
from horovod_sign.tensors.devices.staging import Staging, Tensors
from horovod_sign.tensors.layout import Layout, check_memory, overlaps
from horovod_sign.tensors.planes import DTYPES, check_votable, has_kernels, kernels
from horovod_sign.voting.messages import Planes
from horovod_sign.voting.plan import plan

# Gradients are packed when so many coordinates of them have arrived: few calls, and before they have left the cache.
PACK_COORDINATES = 2**20


class Voter(Protocol):
    """The optimizer that votes. Asked anew at each step, since loading a state replaces its groups and its state."""

    param_groups: list[dict]

    def vote_rule(self, group: dict) -> Rule:
        """What the parameters of a group vote on."""

    def vote_state(self, p: torch.Tensor) -> dict:
        """Where the states that a parameter votes by are kept."""


class Slot:
    """One parameter of a bucket. Hooks find all they need here, since they run once a parameter in each backward.

    Attributes:
        parameter: the parameter.
        label: what to call it.
        layout: where its coordinates are, for all ranks, wherever they are on this one by now.
        lies_so: whether its own memory is as `layout` says, as `check_parameter` found.
        bucket: the bucket it belongs to.
        index: its number in the bucket.
        hook: what is called in backward when its gradient is there, if there is one.
        group: the number of its group in the optimizer; None if it has left it: then it abstains, and does not move.
        offset, length: where in a plane its words start, and how many bytes they are.
        size: how many coordinates it has.
        taken: whether the bucket has its gradient of this step.
        passes_left: backward passes until its gradient of this step is complete.
        seen: what `edits` notes of the gradient that was packed, to see whether it was changed since.
    """

    __slots__ = (
        "__weakref__",
        "bucket",
        "group",
        "hook",
        "index",
        "label",
        "layout",
        "length",
        "lies_so",
        "offset",
        "parameter",
        "passes_left",
        "seen",
        "size",
        "taken",
    )

    def __init__(self, parameter, label: str, bucket: "Bucket", index: int, group: int, offset: int, layout: Layout):
        self.parameter, self.label, self.bucket = parameter, label, bucket
        self.index, self.group, self.hook = index, group, None
        self.layout, self.lies_so = layout, True
        self.size, self.offset, self.length = parameter.numel(), offset, -(-parameter.numel() // 64) * 8
        self.taken, self.passes_left, self.seen = False, 1, None

    def check_parameter(self):
        """Raises an error if a step cannot be written to the parameter; else notes how it can."""
        p = self.parameter
        self.lies_so = self.layout.holds(p)
        if self.lies_so:
            return
        if p.shape != self.layout.shape:
            raise RuntimeError(
                f"parameter {self.label} had {self.size} coordinates, shape {tuple(self.layout.shape)}, when "
                f"hvs.DistributedOptimizer was made and now has {p.numel()}, shape {tuple(p.shape)}: wrap it "
                "after the model has its final shapes"
            )
        check_memory(f"parameter {self.label}", p)
        if overlaps(p):
            raise RuntimeError(
                f"parameter {self.label} has elements that overlap in memory (strides {p.stride()}), so that a step "
                "cannot be written to them: give each its own by p.data = p.data.clone()"
            )

    def copied(self) -> torch.Tensor:
        """A copy of the parameter that lies as the layout says."""
        p = self.parameter
        return self.layout.copy(f"parameter {self.label}", p, p.dtype, p.device)

    def gradient(self) -> torch.Tensor:
        """The gradient in the layout and dtype of the vote, dense."""
        p, g = self.parameter, self.parameter.grad
        if g.dtype == p.dtype and g.device == p.device and self.layout.holds(g):
            return g
        if p.shape != self.layout.shape:
            self.check_parameter()
        return self.layout.copy(f"the gradient of parameter {self.label}", g, p.dtype, p.device)

    def state(self, name: str, state: dict) -> torch.Tensor:
        """What a rule calls `name` in `state`, in the layout of the vote and float32; zeros if it is not there yet."""
        m, p = state.get(name), self.parameter
        if name not in state:
            m = self.layout.empty(torch.float32, p.device).zero_()
        elif not isinstance(m, torch.Tensor) or m.shape != self.layout.shape:
            found = f"shape {tuple(m.shape)}" if isinstance(m, torch.Tensor) else repr(m)
            raise RuntimeError(
                f"the {_called(name)} of parameter {self.label} must be a tensor of shape {tuple(self.layout.shape)}, "
                f'but the state of the optimizer has {found} as its "{name}"'
            )
        elif m.dtype == torch.float32 and m.device == p.device and self.layout.holds(m):
            return m
        else:
            m = self.layout.copy(f"the {_called(name)} of parameter {self.label}", m, torch.float32, p.device)
        state[name] = m
        return m

    @property
    def words(self) -> slice:
        """Its bytes of a plane."""
        return slice(self.offset, self.offset + self.length)


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
        self._voter = voter
        self._layout = native.Segments([(0, p.numel()) for p in self.parameters])
        self.plane_bytes, self.coordinates = self._layout.plane_bytes, self._layout.coordinates
        offsets = self._layout.offsets.tolist()
        known = layouts or {}
        self.slots = [
            Slot(p, label, self, i, group, offsets[i], known.get(p) or Layout(p))
            for i, (p, label, group) in enumerate(parameters)
        ]
        self.trainable = list(self.slots)
        self.error: Exception | None = None
        self._sign = np.zeros(self.plane_bytes, np.uint8)
        self._nonzero = np.zeros(self.plane_bytes, np.uint8)
        self._stagings: dict[torch.device, Staging] = {}
        self.forget()

    def arrived(self, slot: Slot) -> bool:
        """A gradient is there. Returns whether so many are now that they should be packed.

        On a device all are packed in one launch, when the bucket is full.
        """
        slot.taken = True
        self._waiting.append(slot)
        if has_kernels(slot.parameter):
            self._waiting_coordinates += slot.size
        else:
            self._staging(slot.parameter.device).arrived()
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
        for staging in self._stagings.values():
            staging.send_to_host()

    @property
    def packed(self) -> bool:
        """Whether `collect` would return without waiting."""
        return all(staging.packed for staging in self._stagings.values())

    def collect(self) -> Planes:
        """This rank's ballot, after `launch`. The planes are overwritten by the ballot of the next step."""
        for staging in self._stagings.values():
            zeros, nans = staging.fetch(self._sign, self._nonzero)
            self._zeros += zeros
            self._nans += nans
        self.zeros, self.nans = self._zeros, self._nans
        self.forget()
        self.ballot = Planes(self._sign, self._nonzero if self._abstain and self.zeros + self.nans else None)
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
        alike = self._alike(self._not_frozen())
        for _, dtype, slots in _on_host(alike):
            segments = self._segments(slots, [slot.parameter.grad for slot in slots])
            kernels().unpack(dtype, segments, decided.sign, decided.nonzero)
        for device, batches in _by_device(alike).items():
            staging = self._staging(device)
            there, _ = staging.receive(decided)
            for _, dtype, slots in batches:
                staging.unpack(dtype, _tensors(slots), [slot.parameter.grad for slot in slots], there)

    def take_step(self, decided: Planes):
        """x <- x - lr * (vote + weight_decay * x), straight from the bits, in one pass over the parameters."""
        # Parameters that were frozen since stay where they are, even with weight decay.
        alike = self._alike(self._not_frozen())
        for group, dtype, slots in _on_host(alike):
            values = self._values(slots)
            lr, decay = _step_of(group)
            kernels().apply(dtype, self._segments(slots, values), decided.sign, decided.nonzero, lr, decay)
            self._write_back(slots, values)
        for device, batches in _by_device(alike).items():
            self._take_step_on(device, batches, decided)

    def nan_report(self, voter: str) -> str | None:
        """What to tell the user of the first gradient with NaN, before votes are written; None: there is none."""
        for slot in self.slots:
            p, g = slot.parameter, slot.parameter.grad
            nans = 0 if g is None else int(torch.isnan(g.to_dense() if g.is_sparse else g).sum())
            if nans:
                return nan_report(voter, slot.label, nans, p.numel())
        return None

    def _take_step_on(self, device: torch.device, batches, decided: Planes):
        staging, steps = self._staging(device), [_step_of(group) for group, _, _ in batches]
        there, scalars = staging.receive(decided, [number for step in steps for number in step])
        for i, ((_, dtype, slots), (_, decay)) in enumerate(zip(batches, steps, strict=True)):
            values = self._values(slots)
            staging.apply(dtype, _tensors(slots), values, there, scalars[2 * i : 2 * i + 2], decay != 0)
            self._write_back(slots, values)

    def forget(self):
        """Expects the gradients of a new step."""
        self._waiting: list[Slot] = []
        self._waiting_coordinates, self._zeros, self._nans = 0, 0, 0
        for staging in self._stagings.values():
            staging.forget()
        for slot in self.slots:
            slot.taken = False

    def _not_frozen(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.group is not None and slot.parameter.requires_grad]

    @staticmethod
    def _values(slots: list[Slot]) -> list[torch.Tensor]:
        """The parameters where they lie as their layouts say, else copies that do."""
        return [slot.parameter if slot.lies_so else slot.copied() for slot in slots]

    @staticmethod
    def _write_back(slots: list[Slot], values: list[torch.Tensor]):
        for slot, value in zip(slots, values, strict=True):
            if not slot.lies_so:
                slot.parameter.copy_(value)

    def _staging(self, device: torch.device) -> Staging:
        if device not in self._stagings:
            self._stagings[device] = Staging(device, self.plane_bytes, [slot.size for slot in self.slots])
        return self._stagings[device]

    def _pack_waiting(self, abstain: bool):
        self._abstain_for([slot for slot in self._waiting if slot.group is None])
        for group, dtype, slots in self._alike([slot for slot in self._waiting if slot.group is not None]):
            rule = self._voter.vote_rule(group)
            # All count all steps, also those without a gradient, so that a group warms up as one.
            warm = self._warm(rule, slots)
            known = rule.betas is not None
            read = self._readable if known else functools.partial(self._voted, warm=warm)
            voted = {slot: read(rule, slot) for slot in slots if slot.parameter.grad is not None}
            present = {slot: each for slot, each in voted.items() if each is not None}
            if not known:
                self._pack_voted(present, abstain)
            elif present:
                self._pack_alike(rule, warm, dtype, list(present), list(present.values()), abstain)
            if len(present) < len(slots):
                self._abstain_for([slot for slot in slots if slot not in present])
        self._waiting, self._waiting_coordinates = [], 0

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
            self.error = error
            return None

    def _voted(self, rule: Rule, slot: Slot, warm: bool) -> torch.Tensor | None:
        """What a slot votes on by a rule that no kernel knows; None, and `error`, if that cannot be had."""
        p = slot.parameter
        try:
            states = [slot.state(name, self._voter.vote_state(p)) for name in rule.states]
            with contextlib.nullcontext() if has_kernels(p) else self._staging(p.device).working():
                try:
                    voted = own_ballot(rule, slot.gradient(), states, warm)
                except RuntimeError as error:
                    raise RuntimeError(f"{error} (parameter {slot.label})") from error
                if slot.layout.holds(voted):
                    return voted
                return slot.layout.copy(f"the ballot of parameter {slot.label}", voted, voted.dtype, voted.device)
        except (RuntimeError, TypeError) as error:
            self.error = error
            return None

    def _pack_voted(self, voted: dict[Slot, torch.Tensor], abstain: bool):
        """Packs the signs of these tensors, of slots of one device, as they are."""
        alike: dict[torch.dtype, list[Slot]] = {}
        for slot, each in voted.items():
            alike.setdefault(each.dtype, []).append(slot)
        for dtype, slots in alike.items():
            self._pack_alike(signsgd(), False, DTYPES[dtype], slots, [voted[slot] for slot in slots], abstain)

    def _pack_alike(self, rule: Rule, warm: bool, dtype: str, slots: list[Slot], gradients, abstain: bool):
        """Packs gradients of one rule, dtype and device in one call of a kernel."""
        momenta = None
        if rule.states:
            (name,) = rule.states  # the kernels know no more
            momenta = [self._voter.vote_state(slot.parameter)[name] for slot in slots]
        device = slots[0].parameter.device
        if not has_kernels(slots[0].parameter):
            self._staging(device).pack(dtype, _tensors(slots), gradients, momenta, rule.betas, warm, not abstain)
            return
        segments, mode = self._segments(slots, gradients), native.ABSTAIN if abstain else native.ONEBIT
        planes = self._sign, self._nonzero if abstain else None
        if momenta is None:
            zeros, nans = kernels().pack(dtype, mode, segments, *planes)
        else:
            addresses = [m.data_ptr() for m in momenta]
            zeros, nans = kernels().interpolate_pack(
                dtype, mode, segments, addresses, *rule.betas, *planes, vote_gradient=warm
            )
        self._zeros += zeros
        self._nans += nans

    def _abstain_for(self, slots: list[Slot]):
        """Clears the planes of parameters: with `abstain=False` a clear sign bit is a +1, as which a zero counts."""
        for slot in slots:
            self._sign[slot.words] = 0
            self._nonzero[slot.words] = 0
            if slot.size % 64:
                end = slot.offset + slot.length
                self._nonzero[end - 8 : end] = np.packbits(np.arange(64) >= slot.size % 64, bitorder="little")
            self._zeros += slot.size

    def _alike(self, slots: list[Slot]) -> list[tuple[dict, str, list[Slot]]]:
        """Slots by group, dtype and device of the parameter: what one call of a kernel can handle."""
        alike: dict[tuple, list[Slot]] = {}
        for slot in slots:
            p = slot.parameter
            alike.setdefault((slot.group, p.dtype, p.device), []).append(slot)
        for (_, dtype, device), batch in alike.items():
            if dtype not in DTYPES or device.type == "meta":
                check_votable(f"parameter {batch[0].label}", batch[0].parameter)
        return [(self._voter.param_groups[group], DTYPES[dtype], batch) for (group, dtype, _), batch in alike.items()]

    def _segments(self, slots: list[Slot], tensors: list[torch.Tensor]) -> native.Segments:
        """The kernels' view of tensors that lie in memory as the layouts of these slots say."""
        pointers = np.array([t.data_ptr() for t in tensors], np.uint64)
        return self._layout.subset([slot.index for slot in slots], pointers)


def _called(state: str) -> str:
    return state.removesuffix("_buffer")


def _on_host(alike):
    """Of `Bucket._alike`, what the native kernels handle."""
    return [each for each in alike if has_kernels(each[2][0].parameter)]


def _by_device(alike) -> dict[torch.device, list]:
    """Of `Bucket._alike`, what is elsewhere, by device."""
    there: dict[torch.device, list] = {}
    for each in alike:
        p = each[2][0].parameter
        if not has_kernels(p):
            there.setdefault(p.device, []).append(each)
    return there


def _step_of(group: dict) -> tuple[float, float]:
    return float(group["lr"]), float(group["weight_decay"])


def _tensors(slots: list[Slot]) -> Tensors:
    return Tensors(
        tuple(slot.size for slot in slots), tuple(slot.offset for slot in slots), tuple(slot.index for slot in slots)
    )


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
