"""Do the ranks still have the same parameters, and step with the same numbers? Asked every so many steps.

The options of all groups are compared, and checksums of parameters: all of a small model, of a large one a part that
moves on from time to time, since replicas that have parted differ nearly everywhere.
"""

import math
import zlib
from collections.abc import Iterator
from typing import Any

import torch

from horovod_sign.torch.collectives import HorovodCollectives
from horovod_sign.voting import progress, replicas
from horovod_sign.voting.protocols import Vote

# Bytes of parameters that are read for a comparison: a millisecond or two.
CHECKED_BYTES = 2**22
# Seconds for which the end of a step waits for what began with it: other ranks may be about to step another optimizer.
WAITS_AT_END = 0.5
# How an optimizer computes, not what: these may differ.
_NO_NUMBERS = ("foreach", "fused", "capturable", "differentiable")
_REMEDIES = {
    "numbers": (
        "all ranks must step with the same numbers, or their replicas part; a scheduler that goes by each rank's own "
        "loss (ReduceLROnPlateau) must be given the mean of all, hvd.allreduce(loss)"
    ),
    "parameters": (
        "the replicas have parted, and votes do not bring them together again; call hvd.broadcast_parameters("
        "model.state_dict(), root_rank=0) before the first step, and change parameters on all ranks alike"
    ),
    "layout": "all ranks must have the same parameter groups with the same options",
}


class ReplicaCheck:
    """Compares the ranks of an optimizer once in a while, and warns on all of them.

    Args:
        optimizer: the wrapped one.
        labels: names of parameters.
        every: how many steps; 0: never.
        process_set: Horovod's, of the ranks that vote.
        name: of the Horovod ops: unique among optimizers, the same on all ranks.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, labels: dict[torch.Tensor, str], every: int, process_set: Any, name: str
    ) -> None:
        self._optimizer, self._labels, self._every = optimizer, labels, every
        self._collectives, self._name = HorovodCollectives(process_set), name
        self._steps, self._checks = 0, 0
        self._vote: Vote | None = None
        self._warnings = replicas.Warnings(_REMEDIES, "hvs.DistributedOptimizer compares every check_replicas steps")
        progress.add(self)

    def begin(self) -> None:
        """A step begins: if it is one of those, begins to compare. In the same steps on all ranks."""
        self.conclude()
        if self._every and self._collectives.size > 1 and self._steps % self._every == 0:
            items = [*self._numbers(), *self._checksums(self._checks)]
            comparison = replicas.compare(items, self._collectives.rank, self._collectives.size)
            self._vote = Vote(comparison, self._collectives, f"{self._name}.replicas")
            self._checks += 1
        self._steps += 1

    def poll(self) -> None:
        if self._vote is not None:
            self._vote.poll()

    def conclude(self, seconds: float = math.inf) -> None:
        """Waits for what has begun, which takes as long as a vote does, and says what it found."""
        if self._vote is None or not progress.wait(self._vote, seconds):
            return
        different, self._vote = self._vote.wait(), None
        self._warnings.tell(different, f"at step {self._steps}")

    def _numbers(self) -> Iterator[replicas.Item]:
        keys = [key for key in self._optimizer.defaults if key not in _NO_NUMBERS]
        for i, group in enumerate(self._optimizer.param_groups):
            yield from replicas.numbers(group, keys, f"group {i}")

    def _checksums(self, number: int) -> Iterator[replicas.Item]:
        parameters = [p for group in self._optimizer.param_groups for p in group["params"] if p.numel()]
        sizes = [p.numel() * p.element_size() for p in parameters]
        for i, start, stop in replicas.parts(sizes, number, CHECKED_BYTES):
            p = parameters[i]
            name = f"the checksum of parameter {self._labels.get(p, i)}"
            checksum = _checksum(p, start // p.element_size(), -(-stop // p.element_size()))
            yield replicas.Item("parameters", name, f"{checksum:08x}")


def _checksum(p: torch.Tensor, start: int, stop: int) -> int:
    """Of the coordinates [start, stop) of `p` in C order, whatever their order in memory."""
    piece = p.detach().resolve_conj().resolve_neg().reshape(-1)[start:stop]
    return zlib.crc32(piece.contiguous().view(torch.uint8).cpu().numpy())
