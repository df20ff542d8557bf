"""Batches: tensors of one bucket that one launch handles together, since they have one dtype and device.

A launch finds its tensors by tables on the device. What never changes is uploaded once; addresses of tensors, when they
have changed since the last launch, which in a training that has settled is rare.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from horovod_sign.tensors.devices.queues import pinned

TILE = 2048  # coordinates that a program of a launch handles: whole words of planes, and enough loads in flight


class Addresses(NamedTuple):
    """Where tensors are.

    Attributes:
        table: int64, on the device.
        aligned: whether all are multiples of 16 bytes.
    """

    table: torch.Tensor
    aligned: bool


class Batch:
    """Some tensors of a bucket.

    Attributes:
        dtype: their dtype's name.
        device: where they are.
        lengths: coordinates of each.
        offsets: where the words of each start in a plane, in bytes.
        firsts: where the counts of each start, in tiles.
        tiles: int64 table (tensor, first coordinate, first word of 32 bits, coordinates left, number) of each tile.
        tile_count: how many tiles there are.
        kept: further tables, of the kernels.

    Args:
        dtype, device, lengths, offsets, firsts: as above.
    """

    def __init__(self, dtype: str, device: torch.device, lengths: Sequence[int], offsets: Sequence[int], firsts):
        self.dtype, self.device = dtype, device
        self.lengths, self.offsets, self.firsts = list(lengths), list(offsets), list(firsts)
        self.tile_count = sum(map(tiles_of, self.lengths))
        self._tiles: torch.Tensor | None = None
        self._known: dict[tuple[int, ...], Addresses] = {}
        self.kept: dict[str, torch.Tensor] = {}

    @property
    def tiles(self) -> torch.Tensor:
        if self._tiles is None:
            self._tiles = _uploaded(self._tile_table(), self.device)
        return self._tiles

    def addresses(self, tensors: Sequence[torch.Tensor]) -> Addresses:
        """Where these tensors are, one for each of the batch."""
        key = tuple(t.data_ptr() for t in tensors)
        found = self._known.pop(key, None)
        if found is None:
            found = Addresses(_uploaded(np.array(key, np.int64), self.device), all(a % 16 == 0 for a in key))
        while len(self._known) >= max(_KEPT, _KEPT_ADDRESSES // len(key)):
            del self._known[next(iter(self._known))]
        self._known[key] = found
        return found

    def _tile_table(self) -> np.ndarray:
        rows = []
        for i, (n, offset, first) in enumerate(zip(self.lengths, self.offsets, self.firsts, strict=True)):
            start = np.arange(0, n, TILE, dtype=np.int64)
            words = offset // 4 + start // 32
            rows.append(np.stack([np.full_like(start, i), start, words, n - start, first + start // TILE], axis=1))
        return np.concatenate(rows).reshape(-1)


# Tables of addresses of a batch: of gradients, momenta and parameters, and those of a step before; and if it is one
# tensor, of all tensors of its size.
_KEPT, _KEPT_ADDRESSES = 6, 4096


def tiles_of(length: int) -> int:
    """How many tiles a tensor of so many coordinates has."""
    return -(-length // TILE)


def _uploaded(table: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy on the device, made in the order of the current stream, without waiting for it."""
    host = pinned(table.nbytes, device)
    host.numpy()[:] = table.view(np.uint8)
    return host.to(device, non_blocking=True).view(torch.int64)
