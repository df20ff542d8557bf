"""Votes on tensors that are on a GPU or another device: only bits cross to the host.

    batches     tensors that one launch handles, and the tables by which it finds them
    queues      what runs after what: streams, events, pinned memory
    staging     the planes of one bucket on one device, on their way to the host and back
    triton_kernels, operations      the kernels: of Triton where there is one, else of torch's own operations

A kernel set is one file with a class of the four methods of `Kernels`, and a line in `_SETS`.
"""

import functools
import importlib
import importlib.util
import os
import warnings
from typing import Protocol

from horovod_sign.tensors.devices.batches import Batch

_VARIABLE = "HOROVOD_SIGN_TORCH_KERNELS"
_SETS = {"triton": ("triton_kernels", "TritonKernels"), "operations": ("operations", "Operations")}


class Kernels(Protocol):
    """What a set of kernels can do. All work is asked for in the order of the current stream, and not waited for.

    Tensors of a batch lie in memory as its lengths say. `out` and `decided` are `staging.DevicePlanes`.
    """

    def pack(self, batch: Batch, gradients, out, one_bit: bool):
        """Writes the words of the batch in the planes `out`: sign, and unless `one_bit` nonzero, and counts."""

    def interpolate_pack(self, batch: Batch, gradients, momenta, betas, warm: bool, out, one_bit: bool):
        """v = b_vote m + (1 - b_vote) g; m <- b_state m + (1 - b_state) g in float32; packs v, or if `warm` g.

        `betas` is (b_vote, b_state). Where g is not finite, v = g, and m stays.
        """

    def unpack(self, batch: Batch, outputs, decided):
        """Writes votes, -1, 0 or +1, into tensors."""

    def apply(self, batch: Batch, parameters, decided, scalars, decay: bool):
        """x <- x - lr (vote + weight_decay x); `scalars` holds (lr, weight_decay), float64 on the device."""


def forced() -> str | None:
    """The set that HOROVOD_SIGN_TORCH_KERNELS asks for on all devices, the CPU among them; None: each has its best."""
    name = os.environ.get(_VARIABLE, "")
    if name in ("", "auto", "native"):
        return None
    if name not in _SETS:
        raise ValueError(f"{_VARIABLE}={name!r} names no kernels: take one of auto, {', '.join(_SETS)}")
    return name


@functools.cache
def kernels_of(device_type: str) -> Kernels:
    """The kernels for a type of device."""
    return load(forced() or ("triton" if _runs_triton(device_type) else "operations"))


def load(name: str) -> Kernels:
    """A set of kernels, by its name."""
    module, kernels = _SETS[name]
    return getattr(importlib.import_module(f"horovod_sign.tensors.devices.{module}"), kernels)()


def _runs_triton(device_type: str) -> bool:
    if device_type not in ("cuda", "xpu"):
        return False
    if importlib.util.find_spec("triton") is not None:
        return True
    warnings.warn(
        "votes on a GPU are packed by torch's own operations, since Triton is not installed: pip install triton has "
        "them packed by one kernel a bucket",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


__all__ = ["Batch", "Kernels", "forced", "kernels_of", "load"]
