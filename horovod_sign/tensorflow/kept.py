"""States that a rank votes by are its own, so neither broadcast nor saved as weights are.

A rank that has voted, or has loaded what it votes by, has a history and keeps it. One without starts from the mean of
those that have one.
"""

from collections.abc import Callable, Mapping

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from horovod_sign.momenta import of_rank
from horovod_sign.tensorflow.broadcasting import parts_of


class Kept:
    """What a rank votes by, as variables.

    Args:
        slots: float32 variables, the same on all ranks but for their values.
        counters: how many votes they have seen, if nothing else says so.
        votes: says how many.
        process_set: the ranks that vote.
    """

    def __init__(self, slots: list, counters: list, votes: Callable | None, process_set=hvd.global_process_set):
        self.slots, self.counters, self._votes, self.process_set = slots, counters, votes, process_set

    @property
    def has_history(self) -> bool:
        """Whether they have seen a vote, here or before they were saved."""
        return bool(self.slots) and int(self._votes()) > 0

    def share(self, has_history: bool, process_set):
        """Gives ranks without a history the mean of the others' momenta. A collective."""
        voice = tf.constant(int(has_history), tf.int32)
        number = int(hvd.allreduce(voice, op=hvd.Sum, name="horovod_sign.tf.histories", process_set=process_set))
        if number in (0, process_set.size()):
            return
        for i, slot in enumerate(self.slots):
            mine = slot.read_value() if has_history else tf.zeros(slot.shape)
            name, totals = f"horovod_sign.tf.mean_momentum.{i}", []
            for part in parts_of(mine):
                totals.append(hvd.allreduce(part, op=hvd.Sum, name=name, process_set=process_set))
            if totals and not has_history:
                slot.assign(tf.reshape(tf.concat(totals, 0) / number, slot.shape))

    def gather(self) -> dict[str, np.ndarray]:
        """The momenta of all ranks along the first axis of each array, and the counter. A collective."""
        gathered, size = {}, self.process_set.size()
        for i, slot in enumerate(self.slots):
            name, rows = f"horovod_sign.tf.gather_momentum.{i}", [np.zeros((size, 0), np.float32)]
            for part in parts_of(slot.read_value(), size):
                rows.append(hvd.allgather(part[None], name=name, process_set=self.process_set).numpy())
            gathered[f"momentum{i}"] = np.concatenate(rows, axis=1).reshape(size, *slot.shape)
        for counter in self.counters:
            gathered["votes"] = counter.numpy()
        return gathered

    def take(self, gathered: Mapping[str, np.ndarray]) -> None:
        """Sets this rank's from what `gather` gave, maybe of another number of ranks."""
        rank, size = self.process_set.rank(), self.process_set.size()
        for i, slot in enumerate(self.slots):
            slot.assign(of_rank(gathered[f"momentum{i}"], rank, size))
        for counter in self.counters:
            counter.assign(gathered["votes"])
