"""Which coordinate is which: a vote runs over the coordinates of a parameter in the order in which they lie in memory.

All ranks have the same parameters with the same strides (checked once), so that order is the same everywhere; a
gradient with other strides (a channels_last one, say) is first copied into its parameter's.
"""

import torch


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


def same_layout(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether equal positions in memory are equal coordinates of two tensors of one shape."""
    if a.stride() == b.stride():
        return True
    strides = zip(a.shape, a.stride(), b.stride(), strict=True)
    return all(size == 1 or left == right for size, left, right in strides)


def like(p: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`x` in the memory layout and dtype of `p`; x itself if it is so already."""
    if x.dtype == p.dtype and same_layout(p, x):
        return x
    return torch.empty_like(p, memory_format=torch.preserve_format).copy_(x)
