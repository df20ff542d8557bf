"""Where the bits of a bucket's tensors are in its planes, and what is kept for some of them."""

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from horovod_sign.algebra import plane_bytes


class Kept(dict[Any, Any]):
    """What was made for some tensors, to be taken when the same are asked for again, as in most models.

    In some, which have gradients changes from step to step: when there is too much, all is forgotten.

    Args:
        most: how much may be kept.
    """

    def __init__(self, most: int = 64) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: Any, made: Any) -> None:
        if len(self) >= self._most:
            self.clear()
        super().__setitem__(key, made)


class Words(NamedTuple):
    """The tensors of a bucket, one after the other, each from a whole word of 64 bits on.

    Attributes:
        lengths: coordinates of each.
        offsets: where the words of each start in a plane, in bytes.
        plane_bytes: how long a plane is.
    """

    lengths: tuple[int, ...]
    offsets: tuple[int, ...]
    plane_bytes: int

    @classmethod
    def of(cls, lengths: Iterable[int]) -> "Words":
        """Those of tensors of so many coordinates."""
        lengths = tuple(lengths)
        *offsets, end = itertools.accumulate(map(plane_bytes, lengths), initial=0)
        return cls(lengths, tuple(offsets), end)


def clear_nonzero(nonzero: np.ndarray, offset: int, n: int) -> None:
    """Has a tensor of `n` coordinates abstain; bits after the last one never do.

    Args:
        nonzero: the plane.
        offset: where its words start there.
    """
    end = offset + plane_bytes(n)
    nonzero[offset:end] = 0
    if n % 64:
        nonzero[end - 8 : end] = np.packbits(np.arange(64) >= n % 64, bitorder="little")
