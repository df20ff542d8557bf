"""Bits to and from tensors on any device, by torch's own operations: what GPUs use.

Only bits travel between the device and the host, 1/32 of the bytes of float32 gradients; the gradients stay. The
results are those of the native kernels, bit for bit.
"""

import numpy as np
import torch

# The integer type of each floating type's bits, and the bits of infinity: signs, zeros and NaN are told apart by
# integer operations, which know no modes in which a subnormal number is zero.
_BITS = {
    torch.float16: (torch.int16, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float32: (torch.int32, 0x7F800000),
    torch.float64: (torch.int64, 0x7FF0000000000000),
}


def pack(tensors: list[torch.Tensor], one_bit: bool) -> tuple[np.ndarray, np.ndarray | None, int, int]:
    """(sign plane, nonzero plane, zeros, NaNs) of tensors of one dtype, each in whole words, one after the other.

    Coordinates are taken in the order in which they lie in memory. `one_bit`: zeros and NaN are +1, and there is no
    nonzero plane and nothing is counted.
    """
    signs, nonzeros, counts = [], [], []
    for x in tensors:
        integer, infinity = _BITS[x.dtype]
        bits = in_memory_order(x).view(integer)
        magnitude = bits & torch.iinfo(integer).max
        nonzero = (magnitude != 0) & (magnitude <= infinity)
        sign = bits < 0
        signs.append(_bytes_of(sign & nonzero if one_bit else sign, padding=False))
        if not one_bit:
            nonzeros.append(_bytes_of(nonzero, padding=True))
            counts.append(torch.stack([(magnitude == 0).sum(), (magnitude > infinity).sum()]))
    if one_bit:
        return torch.cat(signs).cpu().numpy(), None, 0, 0
    # One copy to the host, since each waits for the device.
    planes = torch.cat(signs + nonzeros).cpu().numpy()
    zeros, nans = torch.stack(counts).sum(0).tolist()
    return planes[: len(planes) // 2], planes[len(planes) // 2 :], zeros, nans


def votes(sign: np.ndarray, nonzero: np.ndarray | None, out: torch.Tensor) -> torch.Tensor:
    """Writes -1, 0 or +1 into a dense tensor, in memory order, from the words of its planes; returns it."""
    n = out.numel()
    minus = _bits_of(torch.from_numpy(sign).to(out.device), n)
    flat = torch.where(minus, -1, 1).to(out.dtype)
    if nonzero is not None:
        flat *= _bits_of(torch.from_numpy(nonzero).to(out.device), n)
    in_memory_order(out).copy_(flat)
    return out


def in_memory_order(x: torch.Tensor) -> torch.Tensor:
    """The coordinates of a dense tensor as one row, as they lie in memory; shares the memory."""
    return x.detach().as_strided((x.numel(),), (1,))


def _bytes_of(flags: torch.Tensor, padding: bool) -> torch.Tensor:
    words = torch.full((-(-len(flags) // 64) * 64,), padding, dtype=torch.bool, device=flags.device)
    words[: len(flags)] = flags
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=flags.device)
    return (words.view(-1, 8) * weights).sum(1, dtype=torch.uint8)


def _bits_of(packed: torch.Tensor, n: int) -> torch.Tensor:
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(1) & weights).ne(0).view(-1)[:n]
