"""Which coordinate is which: a vote runs over the coordinates of a parameter in the order in which they lie in memory.

All ranks have the same parameters with the same strides when votes on them are set up (checked once), so that order is
the same everywhere, and it stays: whatever lies otherwise later (a channels_last gradient, a parameter that one rank
has moved, a momentum that was loaded) is copied into that order first.
"""

import torch

_NO_MEMORY = "{} has no memory for its {} coordinates: its storage was freed or made smaller; give it its memory back"


class Layout:
    """Shape and strides of a parameter as all ranks know them.

    Attributes:
        shape, strides: when votes on the parameter were set up.
        size: how many coordinates.
    """

    __slots__ = ("shape", "size", "strides")

    def __init__(self, p: torch.Tensor):
        self.shape, self.strides, self.size = p.shape, p.stride(), p.numel()

    def holds(self, x: torch.Tensor) -> bool:
        """Whether the memory of `x` is its value, coordinate for coordinate: what the kernels take for granted."""
        return (
            x.layout is torch.strided
            and x.shape == self.shape
            and (x.stride() == self.strides or _same(self.shape, x.stride(), self.strides))
            and not x.is_neg()
            and (self.size == 0 or x.data_ptr() != 0)
            and (x.storage_offset() + self.size) * x.element_size() <= x.untyped_storage().nbytes()
        )

    def empty(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A tensor of this layout, with any values."""
        return torch.empty_strided(self.shape, self.strides, dtype=dtype, device=device)

    def copy(self, what: str, x: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """The value of `x` in this layout. `what` it is, for the RuntimeError if it cannot be had."""
        if x.shape != self.shape:
            raise RuntimeError(f"{what} has shape {tuple(x.shape)}, but its parameter {tuple(self.shape)}")
        check_memory(what, x)
        dense = x.detach() if x.layout is torch.strided else x.detach().to_dense()
        return self.empty(dtype, device).copy_(dense)


def check_memory(what: str, x: torch.Tensor):
    """Raises RuntimeError if the storage of `x` is too small for it. Torch itself trusts its length."""
    if x.layout is torch.strided and x.device.type != "meta" and not has_memory(x):
        raise RuntimeError(_NO_MEMORY.format(what, x.numel()))


def has_memory(x: torch.Tensor) -> bool:
    """Whether the storage of `x` reaches to its last element."""
    if x.numel() == 0:
        return True
    last = x.storage_offset() + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return (last + 1) * x.element_size() <= x.untyped_storage().nbytes()


def overlaps(x: torch.Tensor) -> bool:
    """Whether elements of `x` may share memory, so that it cannot be written to."""
    extent = 0
    for stride, n in sorted(zip(x.stride(), x.shape, strict=True)):
        if n == 1:
            continue
        if stride <= extent:
            return x.numel() > 0
        extent += (n - 1) * stride
    return False


def is_dense(p: torch.Tensor) -> bool:
    """Whether the elements of `p` fill one block of memory without holes or overlaps, in any order."""
    if p.numel() == 0:
        return True
    expected = 1
    for stride, size in sorted(zip(p.stride(), p.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def _same(shape, left, right) -> bool:
    """Whether strides of tensors of one shape differ only where they do not matter."""
    return all(n == 1 or a == b for n, a, b in zip(shape, left, right, strict=True))
