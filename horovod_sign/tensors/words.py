"""Where the bits of a bucket's tensors are in its planes, and what is kept for some of them."""

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

from horovod_sign.algebra import plane_bytes

_KEPT = 64


class Kept(dict[Any, Any]):
    """What was made for some tensors of a bucket, to be taken when the same are asked for again, as in most models.

    In some, which have gradients changes from step to step: when there is too much, all is forgotten.
    """

    def __setitem__(self, key: Any, made: Any) -> None:
        if len(self) >= _KEPT:
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
