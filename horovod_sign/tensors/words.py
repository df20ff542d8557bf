"""Where the bits of a bucket's tensors are in its planes."""

import itertools
from collections.abc import Iterable
from typing import NamedTuple

from horovod_sign.algebra import plane_bytes


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
