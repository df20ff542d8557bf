"""The planes of one bucket on one device, and their way to the host and back.

    gradients -> pack (device) -> one copy of the bits to pinned memory -> the vote, on the host
    the vote -> one copy of the bits to the device -> the step (device)

The host waits for none of it: `packed` asks whether the bits are here.
"""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from horovod_sign.algebra import plane_bytes
from horovod_sign.tensors.devices import Batch, Kernels, load
from horovod_sign.tensors.devices.batches import tiles_of
from horovod_sign.tensors.devices.queues import pinned, queue_of
from horovod_sign.tensors.words import Kept, Words
from horovod_sign.voting.messages import Planes


class DevicePlanes(NamedTuple):
    """Planes on a device.

    Attributes:
        sign, nonzero: uint8, whole words of 64 bits; `nonzero` is None where no coordinate is 0.
        counts: int32, (zeros, NaN) of each tile, of a ballot.
    """

    sign: torch.Tensor
    nonzero: torch.Tensor | None
    counts: torch.Tensor | None = None

    @property
    def planes(self) -> list[torch.Tensor]:
        """The planes that there are."""
        return [self.sign] if self.nonzero is None else [self.sign, self.nonzero]


class DeviceStep(NamedTuple):
    """A step, where kernels read it.

    Attributes:
        scalars: (lr, weight_decay), float64 on the device.
        decays: whether weight_decay is not 0.
    """

    scalars: torch.Tensor
    decays: bool


class Staging:
    """One bucket's planes on one device. See `tensors.kernels.BucketPlanes`.

    Args:
        device: the device.
        words: what is where in the planes, also of tensors that are elsewhere.
        ballot: this rank's, on the host; both its planes.
        kernels: what packs, unpacks and applies.
    """

    def __init__(self, device: torch.device, words: Words, ballot: Planes, kernels: Kernels):
        self._device, self._words, self._plane_bytes = device, words, words.plane_bytes
        self.ballot = ballot
        self._firsts = np.cumsum([0, *map(tiles_of, words.lengths)]).tolist()
        self._kernels, self._queue = kernels, queue_of(device)
        self._batches = Kept()
        self._out: torch.Tensor | None = None
        self._host: torch.Tensor | None = None
        self._zeros: torch.Tensor | None = None
        self._copied = None
        self.forget()

    def forget(self):
        """As in `BucketPlanes`."""
        self._sources: set = set()
        self._packed: list[tuple[list[int], bool]] = []

    def arrived(self, coordinates: int) -> int:
        """As in `BucketPlanes`. All are packed in one launch, when the bucket is full."""
        self._sources.add(self._queue.source())
        return 0

    @contextlib.contextmanager
    def working(self):
        """As in `BucketPlanes`."""
        with self._queue.here():
            self._queue.join(self._sources)
            yield

    def pack(self, dtype: str, numbers: Sequence[int], gradients, one_bit: bool):
        """As in `BucketPlanes`."""
        with self._packing(dtype, numbers, one_bit) as batch:
            if batch.tile_count:
                self._kernels.pack(batch, gradients, self._ballot(), one_bit)

    def interpolate_pack(
        self, dtype: str, numbers: Sequence[int], gradients, momenta, betas, warm: bool, one_bit: bool
    ):
        """As in `BucketPlanes`."""
        with self._packing(dtype, numbers, one_bit) as batch:
            if batch.tile_count:
                self._kernels.interpolate_pack(batch, gradients, momenta, betas, warm, self._ballot(), one_bit)

    def send_to_host(self):
        """As in `BucketPlanes`."""
        if not self._packed:
            return
        with self._queue.here():
            self._queue.hold(self._sources)
            used = self._out if not all(one_bit for _, one_bit in self._packed) else self._out[: self._plane_bytes]
            with self._queue.copying():
                self._queue.copy(self._host[: len(used)], used)
                self._copied = self._queue.mark()

    @property
    def packed(self) -> bool:
        """As in `BucketPlanes`."""
        return not self._packed or self._queue.passed(self._copied)

    def fetch(self) -> tuple[int, int]:
        """As in `BucketPlanes`."""
        if not self._packed:
            return 0, 0
        if not self.packed:
            self._queue.wait(self._copied)
        host, n, zeros_nans = self._host.numpy(), self._plane_bytes, np.zeros(2, np.int64)
        counts, (sign, nonzero) = host[2 * n :].view(np.int32).reshape(-1, 2), self.ballot
        for numbers, one_bit in self._packed:
            for start, stop in runs_of(self._words, numbers):
                sign[start:stop] = host[start:stop]
                if not one_bit:
                    nonzero[start:stop] = host[n + start : n + stop]
            if not one_bit:
                for i in numbers:
                    zeros_nans += counts[self._firsts[i] : self._firsts[i + 1]].sum(axis=0)
        self._packed = []
        return int(zeros_nans[0]), int(zeros_nans[1])

    def receive(self, decided: Planes, steps: Sequence[tuple[float, float]] = ()):
        """As in `BucketPlanes`: one copy, in the order of the current stream."""
        parts = [
            np.ascontiguousarray(each).view(np.uint8) for each in (decided.sign, decided.nonzero) if each is not None
        ]
        parts.append(np.array(steps, np.float64).reshape(-1).view(np.uint8))
        host = pinned(sum(map(len, parts)), self._device)
        np.concatenate(parts, out=host.numpy())
        with self._queue.here():
            there, n = torch.empty(len(host), dtype=torch.uint8, device=self._device), self._plane_bytes
            self._queue.copy(there, host)
        nonzero = None if decided.nonzero is None else there[n : 2 * n]
        scalars = there[len(there) - len(parts[-1]) :].view(torch.float64)
        received = [DeviceStep(scalars[2 * i : 2 * i + 2], decay != 0) for i, (_, decay) in enumerate(steps)]
        return DevicePlanes(there[:n], nonzero), received

    def unpack(self, dtype: str, numbers: Sequence[int], outputs, received: DevicePlanes):
        """As in `BucketPlanes`."""
        batch = self._batch(dtype, numbers)
        if batch.tile_count:
            with self._queue.here():
                self._kernels.unpack(batch, outputs, received)

    def apply(self, dtype: str, numbers: Sequence[int], parameters, received: DevicePlanes, step: DeviceStep):
        """As in `BucketPlanes`."""
        batch = self._batch(dtype, numbers)
        if batch.tile_count:
            with self._queue.here():
                self._kernels.apply(batch, parameters, received, *step)

    @contextlib.contextmanager
    def _packing(self, dtype: str, numbers: Sequence[int], one_bit: bool):
        """Inside, these tensors are packed."""
        with self._queue.here():
            if not self._packed:
                self._begin()
            batch = self._batch(dtype, numbers)
            self._packed.append((list(numbers), one_bit))
            yield batch

    def _begin(self):
        """Before the first pack of a step."""
        if self._out is None:
            nbytes = 2 * self._plane_bytes + 8 * self._firsts[-1]
            self._out = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
            self._host = pinned(nbytes, self._device)
            self._zeros = torch.zeros((), dtype=torch.int32, device=self._device)
        self._queue.join(self._sources)
        self._queue.copy(self._ballot().counts, self._zeros)

    def _ballot(self) -> DevicePlanes:
        n = self._plane_bytes
        return DevicePlanes(self._out[:n], self._out[n : 2 * n], self._out[2 * n :].view(torch.int32))

    def _batch(self, dtype: str, numbers: Sequence[int]) -> Batch:
        key = dtype, tuple(numbers)
        if key not in self._batches:
            lengths, offsets, firsts = (
                [of[i] for i in numbers] for of in (self._words.lengths, self._words.offsets, self._firsts)
            )
            self._batches[key] = Batch(dtype, self._device, lengths, offsets, firsts)
        return self._batches[key]


def runs_of(words: Words, numbers: Sequence[int]) -> list[tuple[int, int]]:
    """The bytes [start, stop) of planes that tensors have, those that follow each other in one piece."""
    runs: list[tuple[int, int]] = []
    for i in sorted(numbers):
        start = words.offsets[i]
        stop = start + plane_bytes(words.lengths[i])
        if runs and runs[-1][1] == start:
            runs[-1] = runs[-1][0], stop
        else:
            runs.append((start, stop))
    return runs


def staged(module: str, name: str):
    """What makes `Staging` in the hands of the kernels of that name, in a module here that is imported when needed."""

    def planes(device: torch.device, words: Words, ballot: Planes) -> Staging:
        return Staging(device, words, ballot, load(module, name))

    return planes
