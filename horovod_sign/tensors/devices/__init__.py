"""Votes on tensors that are on a GPU or another device: only bits cross to the host.

    batches     tensors that one launch handles, and the tables by which it finds them
    queues      what runs after what: streams, events, pinned memory
    staging     the planes of one bucket on one device, on their way to the host and back
    resident    those that stay on the device: their messages, tally and statistics
    triton_kernels, operations      the kernels: of Triton where there is one, else of torch's own operations

A kernel set is one file with a class of the methods of `Kernels`, and a line in `tensors.kernels`.
"""

import functools
import importlib
from typing import Protocol

from horovod_sign.tensors.devices.batches import Batch


class Kernels(Protocol):
    """What a set of kernels can do. All work is asked for in the order of the current stream, and not waited for.

    Tensors of a batch lie in memory as its lengths say. `out` and `decided` are `staging.DevicePlanes`.
    """

    def pack(self, batch: Batch, gradients, out, one_bit: bool):
        """Writes the words of the batch in the planes `out`: sign, and unless `one_bit` nonzero, and counts."""

    def interpolate_pack(self, batch: Batch, gradients, momenta, betas, warm: bool, out, one_bit: bool):
        """v = b_vote m + (1 - b_vote) g; m <- b_state m + (1 - b_state) g in float32; packs v, or if `warm` g.

        `betas` is (b_vote, b_state). Where g is not finite, v = g, and m stays.
        """

    def unpack(self, batch: Batch, outputs, decided):
        """Writes votes, -1, 0 or +1, into tensors."""

    def apply(self, batch: Batch, parameters, decided, scalars, decay: bool):
        """x <- x - lr (vote + weight_decay x); `scalars` holds (lr, weight_decay), float64 on the device."""

    def tally(self, messages, decided):
        """The majority of ballots; both are `resident.Messages`, a row of `messages` is a ballot, `decided` has one."""

    def compare(self, ballot, decided, found):
        """Counts the coordinates of two `staging.DevicePlanes`, padding included, in rows of `found`, which are 0.

        A row of int32 is (both, alike, ties): where neither abstains, where then they are the same, and where `decided`
        does. What is counted is the sum of all rows.
        """


@functools.cache
def load(module: str, name: str) -> Kernels:
    """The kernels of that name in a module here, which is imported only now: Triton is not everywhere."""
    return getattr(importlib.import_module(f"horovod_sign.tensors.devices.{module}"), name)()


__all__ = ["Batch", "Kernels", "load"]
