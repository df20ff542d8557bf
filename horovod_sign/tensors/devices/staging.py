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
from horovod_sign.tensors.devices import Batch, kernels_of
from horovod_sign.tensors.devices.batches import tiles_of
from horovod_sign.tensors.devices.queues import pinned, queue_of
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


class Tensors(NamedTuple):
    """Where the coordinates of some tensors are in a bucket.

    Attributes:
        lengths: how many each has.
        offsets: where the words of each start in a plane, in bytes.
        numbers: of the tensors in the bucket.
    """

    lengths: tuple[int, ...]
    offsets: tuple[int, ...]
    numbers: tuple[int, ...]


class Staging:
    """One bucket's planes on one device.

    Args:
        device: the device.
        plane_bytes: of the bucket.
        lengths: coordinates of all tensors of the bucket, also of those that are elsewhere.
    """

    def __init__(self, device: torch.device, plane_bytes: int, lengths: Sequence[int]):
        self._device, self._plane_bytes = device, plane_bytes
        self._firsts = np.cumsum([0, *map(tiles_of, lengths)]).tolist()
        self._kernels, self._queue = kernels_of(device.type), queue_of(device)
        self._batches: dict[tuple, Batch] = {}
        self._out: torch.Tensor | None = None
        self._host: torch.Tensor | None = None
        self._zeros: torch.Tensor | None = None
        self._copied = None
        self.forget()

    def forget(self):
        """Expects the gradients of a new step."""
        self._sources: set = set()
        self._packed: list[tuple[Tensors, bool]] = []

    def arrived(self):
        """A gradient has been asked for, on the current stream."""
        self._sources.add(self._queue.source())

    @contextlib.contextmanager
    def working(self):
        """Inside, what is asked for comes after the gradients that have arrived, and before `pack`."""
        with self._queue.here():
            self._queue.join(self._sources)
            yield

    def pack(self, dtype: str, tensors: Tensors, gradients, momenta, betas, warm: bool, one_bit: bool):
        """Asks for the ballot of gradients of one dtype; momenta are updated, if there are any."""
        with self._queue.here():
            if not self._packed:
                self._begin()
            batch = self._batch(dtype, tensors)
            self._packed.append((tensors, one_bit))
            if not batch.tile_count:
                return
            if momenta is None:
                self._kernels.pack(batch, gradients, self._ballot(), one_bit)
            else:
                self._kernels.interpolate_pack(batch, gradients, momenta, betas, warm, self._ballot(), one_bit)

    def send_to_host(self):
        """Asks for the copy of what was packed. Nothing is packed after it in this step."""
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
        """Whether the bits are on the host. Does not wait."""
        return not self._packed or self._queue.passed(self._copied)

    def fetch(self, sign: np.ndarray, nonzero: np.ndarray) -> tuple[int, int]:
        """Writes the words of what was packed into a ballot on the host; returns its (zeros, NaNs). May wait."""
        if not self._packed:
            return 0, 0
        if not self.packed:
            self._queue.wait(self._copied)
        host, n, zeros_nans = self._host.numpy(), self._plane_bytes, np.zeros(2, np.int64)
        counts = host[2 * n :].view(np.int32).reshape(-1, 2)
        for tensors, one_bit in self._packed:
            for start, stop in _runs(tensors):
                sign[start:stop] = host[start:stop]
                if not one_bit:
                    nonzero[start:stop] = host[n + start : n + stop]
            if not one_bit:
                for i in tensors.numbers:
                    zeros_nans += counts[self._firsts[i] : self._firsts[i + 1]].sum(axis=0)
        self._packed = []
        return int(zeros_nans[0]), int(zeros_nans[1])

    def receive(self, decided: Planes, scalars: Sequence[float] = ()) -> tuple[DevicePlanes, torch.Tensor]:
        """A vote, and numbers, on the device: one copy, in the order of the current stream."""
        parts = [
            np.ascontiguousarray(each).view(np.uint8) for each in (decided.sign, decided.nonzero) if each is not None
        ]
        parts.append(np.array(scalars, np.float64).view(np.uint8))
        host = pinned(sum(map(len, parts)), self._device)
        np.concatenate(parts, out=host.numpy())
        with self._queue.here():
            there, n = torch.empty(len(host), dtype=torch.uint8, device=self._device), self._plane_bytes
            self._queue.copy(there, host)
        nonzero = None if decided.nonzero is None else there[n : 2 * n]
        return DevicePlanes(there[:n], nonzero), there[len(there) - len(parts[-1]) :].view(torch.float64)

    def unpack(self, dtype: str, tensors: Tensors, outputs, decided: DevicePlanes):
        """Asks for votes as numbers, in tensors of one dtype."""
        batch = self._batch(dtype, tensors)
        if batch.tile_count:
            with self._queue.here():
                self._kernels.unpack(batch, outputs, decided)

    def apply(self, dtype: str, tensors: Tensors, parameters, decided: DevicePlanes, scalars, decay: bool):
        """Asks for the step of parameters of one dtype."""
        batch = self._batch(dtype, tensors)
        if batch.tile_count:
            with self._queue.here():
                self._kernels.apply(batch, parameters, decided, scalars, decay)

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

    def _batch(self, dtype: str, tensors: Tensors) -> Batch:
        key = dtype, tensors.numbers
        if key not in self._batches:
            if len(self._batches) >= _KEPT:
                self._batches.clear()
            firsts = [self._firsts[i] for i in tensors.numbers]
            self._batches[key] = Batch(dtype, self._device, tensors.lengths, tensors.offsets, firsts)
        return self._batches[key]


_KEPT = 64  # batches of a bucket: which gradients there are changes from step to step in some models


def _runs(tensors: Tensors) -> list[tuple[int, int]]:
    """The bytes [start, stop) of planes that tensors have, those that follow each other in one piece."""
    runs: list[tuple[int, int]] = []
    for n, start in sorted(zip(tensors.lengths, tensors.offsets, strict=True), key=lambda each: each[1]):
        stop = start + plane_bytes(n)
        if runs and runs[-1][1] == start:
            runs[-1] = runs[-1][0], stop
        else:
            runs.append((start, stop))
    return runs
