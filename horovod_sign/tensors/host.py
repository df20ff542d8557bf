"""The native kernels of csrc/ on tensors of the CPU: they pack straight into a ballot, and read a vote where it is."""

import contextlib
from collections.abc import Sequence

import numpy as np
import torch

from horovod_sign.algebra import native
from horovod_sign.tensors.words import Kept, Words
from horovod_sign.voting.messages import Planes

Tensors = Sequence[torch.Tensor]


class HostPlanes:
    """See `kernels.BucketPlanes`. All is done when a call returns."""

    packed = True

    def __init__(self, device: torch.device, words: Words, ballot: Planes):
        self._all = native.Segments([(0, n) for n in words.lengths], words.offsets)
        self._known = Kept()
        self._known[tuple(range(self._all.k))] = self._all
        self.ballot = ballot
        self.forget()

    def forget(self) -> None:
        """As in `kernels.BucketPlanes`."""
        self._zeros = self._nans = 0

    def arrived(self, coordinates: int) -> int:
        """As in `kernels.BucketPlanes`."""
        return coordinates

    def working(self) -> contextlib.AbstractContextManager:
        """As in `kernels.BucketPlanes`."""
        return contextlib.nullcontext()

    def pack(self, dtype: str, numbers: Sequence[int], gradients: Tensors, one_bit: bool) -> None:
        """As in `kernels.BucketPlanes`."""
        segments, mode = self._segments(numbers, gradients), native.ONEBIT if one_bit else native.ABSTAIN
        self._count(native_kernels().pack(dtype, mode, segments, *self._written(one_bit)))

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
        """As in `kernels.BucketPlanes`."""
        segments, mode = self._segments(numbers, gradients), native.ONEBIT if one_bit else native.ABSTAIN
        addresses, written = [m.data_ptr() for m in momenta], self._written(one_bit)
        self._count(native_kernels().interpolate_pack(dtype, mode, segments, addresses, *betas, *written, warm))

    def send_to_host(self) -> None:
        """As in `kernels.BucketPlanes`."""

    def fetch(self) -> tuple[int, int]:
        """As in `kernels.BucketPlanes`."""
        counted = self._zeros, self._nans
        self.forget()
        return counted

    def receive(
        self, decided: Planes, steps: Sequence[tuple[float, float]] = ()
    ) -> tuple[Planes, Sequence[tuple[float, float]]]:
        """As in `kernels.BucketPlanes`."""
        return decided, steps

    def unpack(self, dtype: str, numbers: Sequence[int], outputs: Tensors, received: Planes) -> None:
        """As in `kernels.BucketPlanes`."""
        native_kernels().unpack(dtype, self._segments(numbers, outputs), *received)

    def apply(
        self, dtype: str, numbers: Sequence[int], parameters: Tensors, received: Planes, step: tuple[float, float]
    ) -> None:
        """As in `kernels.BucketPlanes`."""
        native_kernels().apply(dtype, self._segments(numbers, parameters), *received, *step)

    def _written(self, one_bit: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """The planes that are packed."""
        return self.ballot.sign, None if one_bit else self.ballot.nonzero

    def _count(self, zeros_nans: tuple[int, int]) -> None:
        self._zeros += zeros_nans[0]
        self._nans += zeros_nans[1]

    def _segments(self, numbers: Sequence[int], tensors: Sequence[torch.Tensor]) -> native.Segments:
        pointers, key = np.array([t.data_ptr() for t in tensors], np.uint64), tuple(numbers)
        if key in self._known:
            return self._known[key].with_pointers(pointers)
        made = self._known[key] = self._all.subset(list(numbers), pointers)
        return made


def native_kernels() -> native.Kernels:
    """The native kernels, on as many threads as torch's own operations use."""
    chosen = native.kernels()
    chosen.threads = torch.get_num_threads()
    return chosen
