"""The kernels for devices without Triton: torch's own operations, on all tensors of a batch laid end to end.

Each operation reads and writes memory, so this takes many times the bytes that the kernels for GPUs do. The results are
those of csrc/, bit for bit.
"""

import functools

import numpy as np
import torch

from horovod_sign.tensors.arithmetic import interpolated, stepped
from horovod_sign.tensors.devices.batches import TILE, Batch

# The integer type of each floating type's bits, and the bits of infinity: signs, zeros and NaN are told apart by
# integer operations, which know no modes in which a subnormal number is zero.
_BITS = {
    "float16": (torch.int16, 0x7C00),
    "bfloat16": (torch.int16, 0x7F80),
    "float32": (torch.int32, 0x7F800000),
    "float64": (torch.int64, 0x7FF0000000000000),
}


class Operations:
    """A few operations for each call, however many tensors there are. See `devices.Kernels`."""

    def pack(self, batch: Batch, gradients, out, one_bit: bool):
        """As in `devices.Kernels`."""
        _put_ballot(batch, _end_to_end(batch, gradients), batch.dtype, out, one_bit)

    def interpolate_pack(self, batch: Batch, gradients, momenta, betas, warm: bool, out, one_bit: bool):
        """As in `devices.Kernels`."""
        voted, kept = interpolated(_end_to_end(batch, gradients), _end_to_end(batch, momenta), betas, warm)
        _spread(batch, kept, momenta)
        _put_ballot(batch, voted, batch.dtype if warm else "float32", out, one_bit)

    def unpack(self, batch: Batch, outputs, decided):
        """As in `devices.Kernels`."""
        _spread(batch, _votes(batch, decided).to(outputs[0].dtype), outputs)

    def apply(self, batch: Batch, parameters, decided, scalars, decay: bool):
        """As in `devices.Kernels`."""
        x = _end_to_end(batch, parameters)
        lr, weight_decay = scalars.to(torch.float64 if batch.dtype == "float64" else torch.float32)
        _spread(batch, stepped(x, _votes(batch, decided), lr, weight_decay, decay).to(x.dtype), parameters)

    def tally(self, messages, decided):
        """As in `devices.Kernels`."""
        bits = (messages.planes.unsqueeze(-1) & _weights(messages.rows.device)).ne(0).to(torch.int8)
        votes = 1 - 2 * bits[:, 0]
        votes *= bits[:, 1] if messages.ties else (messages.voters[:, :1] & 1).to(torch.int8).unsqueeze(-1)
        total = votes.sum(0, dtype=torch.int32)
        flags = [total < 0, total != 0] if decided.ties else [total < 0]
        decided.planes.copy_(_packed(torch.stack(flags)))

    def compare(self, ballot, decided, found):
        """As in `devices.Kernels`."""
        alike = ~(ballot.sign ^ decided.sign)
        masks = [mask for mask in (ballot.nonzero, decided.nonzero) if mask is not None]
        both = functools.reduce(torch.bitwise_and, masks) if masks else torch.full_like(alike, 0xFF)
        ties = torch.zeros_like(alike) if decided.nonzero is None else ~decided.nonzero
        planes = torch.stack([both, alike & both, ties])
        found[0].copy_((planes.unsqueeze(-1) & _weights(alike.device)).ne(0).sum((1, 2)))


def in_memory_order(x: torch.Tensor) -> torch.Tensor:
    """The coordinates of a dense tensor as one row, as they lie in memory; shares the memory."""
    return x.detach().as_strided((x.numel(),), (1,))


def _end_to_end(batch: Batch, tensors) -> torch.Tensor:
    """The coordinates of all tensors in one row, each from a whole word on, zeros between them."""
    pieces = []
    for t, n in zip(tensors, batch.lengths, strict=True):
        pieces.append(in_memory_order(t))
        if n % 64:
            pieces.append(_zeros(64 - n % 64, t.dtype, t.device))
    return torch.cat(pieces)


def _spread(batch: Batch, row: torch.Tensor, tensors):
    """Writes such a row back to the tensors."""
    starts = np.cumsum([0, *[-(-n // 64) * 64 for n in batch.lengths]])
    pieces = [row[start : start + n] for start, n in zip(starts, batch.lengths, strict=False)]
    torch._foreach_copy_([in_memory_order(t) for t in tensors], pieces)


def _put_ballot(batch: Batch, row: torch.Tensor, dtype: str, out, one_bit: bool):
    integer, infinity = _BITS[dtype]
    bits = row.view(integer)
    magnitude = bits & torch.iinfo(integer).max
    zero, nan = magnitude == 0, magnitude > infinity
    idle = zero | nan
    planes = [(bits < 0) & ~idle if one_bit else bits < 0]
    if not one_bit:
        padding = _padding(batch)
        planes.append(~idle if padding is None else ~idle | padding)
    packed = _packed(torch.stack(planes).view(len(planes), -1, 8))
    where = _words_of(batch)
    for plane, words in zip((out.sign, out.nonzero), packed.view(torch.int64), strict=False):
        plane.view(torch.int64).index_copy_(0, where, words)
    if not one_bit:
        zeros_nans = torch.stack([zero if padding is None else zero & ~padding, nan], -1).view(-1, 64, 2)
        out.counts.view(-1, 2).index_add_(0, _tiles_of(batch), zeros_nans.sum(1, dtype=torch.int32))


def _votes(batch: Batch, decided) -> torch.Tensor:
    """The votes of all coordinates, and of the padding between them, as int8."""
    where, weights = _words_of(batch), _weights(batch.device)
    planes = [plane.view(torch.int64).index_select(0, where).view(torch.uint8) for plane in decided.planes]
    flags = [(plane.unsqueeze(1) & weights).ne(0).view(-1).to(torch.int8) for plane in planes]
    votes = 1 - 2 * flags[0]
    return votes if len(flags) == 1 else votes * flags[1]


def _packed(flags: torch.Tensor) -> torch.Tensor:
    """Eight flags, the last dimension, as a byte."""
    return (flags * _weights(flags.device)).sum(-1, dtype=torch.uint8)


def _once(kept: dict, key, make) -> torch.Tensor:
    """What is made at the first time."""
    if key not in kept:
        kept[key] = make()
    return kept[key]


def _words_of(batch: Batch) -> torch.Tensor:
    """The numbers of the batch's words of 64 bits in a plane."""

    def make():
        words = [
            np.arange(offset // 8, offset // 8 + -(-n // 64), dtype=np.int64)
            for n, offset in zip(batch.lengths, batch.offsets, strict=True)
        ]
        return torch.from_numpy(np.concatenate(words)).to(batch.device)

    return _once(batch.kept, "words", make)


def _tiles_of(batch: Batch) -> torch.Tensor:
    """The number of the tile that each of the batch's words of 64 bits is in."""

    def make():
        tiles = [
            first + np.arange(-(-n // 64)) // (TILE // 64) for n, first in zip(batch.lengths, batch.firsts, strict=True)
        ]
        return torch.from_numpy(np.concatenate(tiles)).to(batch.device)

    return _once(batch.kept, "tiles", make)


def _padding(batch: Batch) -> torch.Tensor | None:
    """Where in a row there is no coordinate; None if there is one everywhere."""

    def make():
        flags = [np.arange(-(-n // 64) * 64) >= n for n in batch.lengths]
        return torch.from_numpy(np.concatenate(flags)).to(batch.device)

    return _once(batch.kept, "padding", make) if any(n % 64 for n in batch.lengths) else None


def _weights(device: torch.device) -> torch.Tensor:
    return _once(_constants, device, lambda: torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8).to(device))


def _zeros(n: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return _once(_constants, (dtype, device), lambda: torch.zeros(64, dtype=dtype, device=device))[:n]


_constants: dict = {}  # by device, or dtype and device
