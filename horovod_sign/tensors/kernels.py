"""One interface to all kernels: what a bucket asks of its planes on a device, whoever computes it.

    bucket.take_step -> planes on its device: receive, apply -> csrc/, Triton or torch's own operations

Who computes is chosen once for a bucket and a device, here. A set of kernels is one file, and a line in `_SETS`.
"""

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from horovod_sign.tensors.devices import load
from horovod_sign.tensors.devices.resident import Resident
from horovod_sign.tensors.devices.staging import staged
from horovod_sign.tensors.host import HostPlanes, Tensors
from horovod_sign.tensors.words import Words
from horovod_sign.voting.messages import Planes


class BucketPlanes(Protocol):
    """The planes of a bucket, for those of its tensors that are on one device.

    In a step gradients have `arrived`, are packed, sent to the host and fetched; a vote is received, and unpacked or
    applied. Nothing but `fetch` makes the host wait, and that does not if all is `packed`.

    `numbers` says which tensors of the bucket lists are of. They all have one dtype, of that name, and lie in memory as
    their `Layout` says; momenta are float32.

    Attributes:
        ballot: this rank's, on the host, into which what was packed is written.
    """

    ballot: Planes

    def forget(self) -> None:
        """Expects the gradients of a new step."""

    def arrived(self, coordinates: int) -> int:
        """A gradient has been asked for, on the current stream. Returns how many coordinates of it to pack soon.

        That is all, where there is a cache that they are still in, and none where all are best packed in one launch.
        """

    def working(self) -> AbstractContextManager:
        """Inside, what is asked for comes after the gradients that have arrived, and before `pack`."""

    def pack(self, dtype: str, numbers: Sequence[int], gradients: Tensors, one_bit: bool) -> None:
        """Packs gradients. Zeros and NaN abstain, unless `one_bit`: then they are +1, and there is no second plane."""

    def interpolate_pack(
        self,
        dtype: str,
        numbers: Sequence[int],
        gradients: Tensors,
        momenta: Tensors,
        betas: tuple[float, float],
        warm: bool,
        one_bit: bool,
    ) -> None:
        """Updates momenta, and packs what is voted on by the betas of a rule; the gradients if `warm`."""

    def send_to_host(self) -> None:
        """Asks for the bits of what was packed. Nothing is packed after it in this step."""

    @property
    def packed(self) -> bool:
        """Whether the bits are on the host. Does not wait."""

    def fetch(self) -> tuple[int, int]:
        """Writes the words of what was packed into the ballot; returns how many (zeros, NaN) abstain. May wait."""

    def receive(self, decided: Planes, steps: Sequence[tuple[float, float]] = ()) -> tuple[Any, Sequence[Any]]:
        """A vote, and the (lr, weight_decay) of steps by it, where kernels read them: for `unpack`, and for `apply`."""

    def unpack(self, dtype: str, numbers: Sequence[int], outputs: Tensors, received: Any) -> None:
        """Writes votes, -1, 0 or +1, into tensors."""

    def apply(self, dtype: str, numbers: Sequence[int], parameters: Tensors, received: Any, step: Any) -> None:
        """x <- x - lr (vote + weight_decay x), in one pass over the parameters."""


# The kernels of `devices`: module and class.
_OF_DEVICES = {"triton": ("triton_kernels", "TritonKernels"), "operations": ("operations", "Operations")}
# The planes of a bucket on a device, given what is where in them, and this rank's ballot, on the host.
_SETS: dict[str, Callable[[torch.device, Words, Planes], BucketPlanes]] = {
    "native": HostPlanes,
    **{name: staged(*of) for name, of in _OF_DEVICES.items()},
}
_VARIABLE = "HOROVOD_SIGN_TORCH_KERNELS"


class OnDevices(dict[torch.device, BucketPlanes]):
    """The planes of one bucket on each device that it has tensors on, made when they are asked for.

    Args:
        words: what is where in them.
        ballot: this rank's, on the host; both its planes.
    """

    def __init__(self, words: Words, ballot: Planes):
        super().__init__()
        self._words, self._ballot = words, ballot

    @functools.cached_property
    def cpu(self) -> BucketPlanes:
        """Those on the CPU, found without hashing a device: the hooks of gradients ask for them."""
        return self[torch.device("cpu")]

    def __missing__(self, device: torch.device) -> BucketPlanes:
        planes = self[device] = planes_on(device, self._words, self._ballot)
        return planes


def planes_on(device: torch.device, words: Words, ballot: Planes) -> BucketPlanes:
    """The planes of one bucket on a device, in the hands of the kernels for it."""
    return _SETS[set_of(device.type)](device, words, ballot)


def resident_on(device: torch.device, words: Words, ballot: Planes, size: int) -> Resident:
    """The planes of one bucket that stay on a device, where `size` ranks vote."""
    return Resident(device, words, ballot, load(*_OF_DEVICES[set_of(device.type)]), size)


@functools.cache
def set_of(device_type: str) -> str:
    """The name of the kernels for a type of device."""
    if _FORCED is not None:
        return _FORCED
    if device_type == "cpu":
        return "native"
    return "triton" if _runs_triton(device_type) else "operations"


def forced() -> str | None:
    """The set that HOROVOD_SIGN_TORCH_KERNELS asks for on all devices, the CPU among them; None: each has its best."""
    name = os.environ.get(_VARIABLE, "")
    if name in ("", "auto", "native"):
        return None
    if name not in _SETS:
        others = ", ".join(each for each in _SETS if each != "native")
        raise ValueError(f"{_VARIABLE}={name!r} names no kernels: take one of auto, {others}")
    return name


_FORCED = forced()


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
