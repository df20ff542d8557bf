"""States that a rank votes by are its own, so neither broadcast nor saved as weights are.

A rank that has voted, or has loaded what it votes by, has a history and keeps it. One without starts from the mean of
those that have one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from horovod_sign.states import of_rank
from horovod_sign.tensorflow.broadcasting import parts_of
from horovod_sign.tensorflow.handshake import agree
from horovod_sign.voting.handshake import Item


class RankStates:
    """What a rank votes by, as variables.

    Args:
        slots: float32 variables, the same on all ranks but for their values.
        counters: how many votes they have seen, if nothing else says so.
        votes: says how many.
        process_set: the ranks that vote.
    """

    def __init__(self, slots: list, counters: list, votes: Any, process_set: Any = hvd.global_process_set) -> None:
        self.slots, self.counters, self._votes, self.process_set = slots, counters, votes, process_set

    @property
    def has_history(self) -> bool:
        """Whether they have seen a vote, here or before they were saved."""
        return bool(self.slots) and int(self._votes()) > 0

    def share(self, has_history: bool, process_set: Any) -> None:
        """Gives ranks without a history the mean of the others' momenta. A collective.

        Raises:
            ValueError: ranks have other momenta than others. On all ranks.
        """
        voice = tf.constant(int(has_history), tf.int32)
        number = int(hvd.allreduce(voice, op=hvd.Sum, name="horovod_sign.tf.histories", process_set=process_set))
        if number in (0, process_set.size()):
            return
        self._agree("momenta to start with", (), None, process_set)
        for i, slot in enumerate(self.slots):
            mine = slot.read_value() if has_history else tf.zeros(slot.shape)
            name, totals = f"horovod_sign.tf.mean_momentum.{i}", []
            for part in parts_of(mine):
                totals.append(hvd.allreduce(part, op=hvd.Sum, name=name, process_set=process_set))
            if totals and not has_history:
                slot.assign(tf.reshape(tf.concat(totals, 0) / number, slot.shape))

    def gather(
        self, what: str, items: Sequence[Item] = (), error: Exception | None = None, wanted: bool = True
    ) -> dict[str, np.ndarray]:
        """The momenta of all ranks along the first axis of each array, and the counter. A collective.

        Args:
            what: who asks, for errors.
            items: what else must be alike on all ranks.
            error: why this rank cannot take part, if it cannot.
            wanted: whether this rank is to have them, M times its own; where not, it only gives its own.

        Raises:
            TypeError, ValueError: a rank has an error, or they differ. On all ranks.
        """
        self._agree(what, items, error, self.process_set)
        gathered, size = {}, self.process_set.size()
        for i, slot in enumerate(self.slots):
            name, rows = f"horovod_sign.tf.gather_momentum.{i}", [np.zeros((size, 0), np.float32)]
            for part in parts_of(slot.read_value(), size):
                row = hvd.allgather(part[None], name=name, process_set=self.process_set)
                rows += [row.numpy()] if wanted else []
            if wanted:
                gathered[f"momentum{i}"] = np.concatenate(rows, axis=1).reshape(size, *slot.shape)
        for counter in self.counters if wanted else ():
            gathered["votes"] = counter.numpy()
        return gathered

    def take(self, gathered: Mapping[str, np.ndarray]) -> None:
        """Sets this rank's from what `gather` gave, maybe of another number of ranks."""
        rank, size = self.process_set.rank(), self.process_set.size()
        for i, slot in enumerate(self.slots):
            slot.assign(of_rank(gathered[f"momentum{i}"], rank, size))
        for counter in self.counters:
            counter.assign(gathered["votes"])

    def _agree(self, what: str, items: Sequence[Item], error: Exception | None, process_set: Any) -> None:
        """Asks whether all ranks have slots of the same shapes: each is a collective of its own."""
        if process_set.size() > 1:
            shapes = [(f"momentum {i}", str(tuple(slot.shape))) for i, slot in enumerate(self.slots)]
            agree(what, [*items, *shapes], error, process_set)
        elif error is not None:
            raise error
