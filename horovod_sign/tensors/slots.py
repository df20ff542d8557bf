"""Slots: the parameters of a bucket, each with what packing its gradient and stepping it must know."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch

from horovod_sign.tensors.layout import Layout, check_memory, overlaps
from horovod_sign.tensors.planes import DTYPES, check_votable

if TYPE_CHECKING:
    from horovod_sign.tensors.buckets import Bucket


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

    def __init__(
        self,
        parameter: torch.Tensor,
        label: str,
        bucket: "Bucket",
        index: int,
        group: int,
        offset: int,
        layout: Layout,
    ):
        self.parameter, self.label, self.bucket = parameter, label, bucket
        self.index, self.hook = index, None
        self.group: int | None = group
        self.layout, self.lies_so = layout, True
        self.size, self.offset, self.length = parameter.numel(), offset, -(-parameter.numel() // 64) * 8
        self.taken, self.passes_left = False, 1
        self.seen: tuple[tuple[int, int], int | None] | None = None

    def check_parameter(self) -> None:
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
        """The gradient in the layout of the vote, dense."""
        p, g = self.parameter, self.parameter.grad
        dtype = p.dtype
        if g.dtype != dtype and g.dtype in DTYPES:
            dtype = g.dtype  # of 32 bits beside a parameter of 16, perhaps, in which it would be 0
        if g.dtype == dtype and g.device == p.device and self.layout.holds(g):
            return g
        if p.shape != self.layout.shape:
            self.check_parameter()
        return self.layout.copy(f"the gradient of parameter {self.label}", g, dtype, p.device)

    def new_gradient(self) -> torch.Tensor:
        """Room for votes as the gradient, of the dtype that torch asks for."""
        return self.layout.empty(gradient_dtype(self.parameter), self.parameter.device)

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


def gradient_dtype(p: torch.Tensor) -> torch.dtype:
    """Of which dtype a gradient of `p` is made: its own, unless the user has said another (torch 2.10)."""
    return getattr(p, "grad_dtype", None) or p.dtype


class Batch(NamedTuple):
    """Slots of one group, dtype and device: what one call of a kernel can handle.

    Attributes:
        group: the number of their group in the optimizer.
        dtype: the name of the dtype of their parameters.
        device: where those are.
        slots: they.
    """

    group: int
    dtype: str
    device: torch.device
    slots: list[Slot]

    @property
    def numbers(self) -> list[int]:
        """Their numbers in the bucket."""
        return [slot.index for slot in self.slots]


def batches_of(slots: Iterable[Slot]) -> list[Batch]:
    """Slots that are in a group, by group, dtype and device. Raises TypeError for what cannot be voted on."""
    alike: dict[tuple, list[Slot]] = {}
    for slot in slots:
        p = slot.parameter
        alike.setdefault((slot.group, p.dtype, p.device), []).append(slot)
    for (_, dtype, device), batch in alike.items():
        if dtype not in DTYPES or device.type == "meta":
            check_votable(f"parameter {batch[0].label}", batch[0].parameter)
    return [Batch(group, DTYPES[dtype], device, batch) for (group, dtype, device), batch in alike.items()]


def _called(state: str) -> str:
    return state.removesuffix("_buffer")
