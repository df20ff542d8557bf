"""The momenta that a distributed optimizer votes by: each rank's own, so neither broadcast nor saved as weights are.

A rank that has voted, or has loaded a momentum, has a history and keeps it. One without starts from the mean of those
that have one.
"""

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from horovod_sign.momenta import of_rank
from horovod_sign.tensorflow.broadcast import broadcast_variables
from horovod_sign.tensorflow.keras.distributed import is_distributed, step_of


def start_alike(model, optimizer, root_rank: int, process_set=hvd.global_process_set):
    """Gives all ranks the weights of `model`, and the state of `optimizer` (or None), that one rank has.

    All but the momenta to vote by. Those stay where there is a history; other ranks get the mean of them.
    """
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)
    own = Momenta(optimizer) if is_distributed(optimizer) else None
    has_history = own is not None and own.has_history
    variables = list(model.weights) + ([] if optimizer is None else shared_variables(optimizer))
    broadcast_variables(variables, root_rank, process_set)
    if own is not None:
        own.share(has_history, process_set)


def shared_variables(optimizer) -> list:
    """An optimizer's variables that are the same on all ranks."""
    if not is_distributed(optimizer):
        return list(optimizer.variables)
    own = Momenta(optimizer)
    mine = {id(slot) for slot in own.slots}
    return [v for v in optimizer.variables if id(v.value) not in mine] + own.counters


class Momenta:
    """This rank's momenta of a distributed optimizer, which must be built.

    Attributes:
        slots: float32 variables, one for each variable of the optimizer; none if votes are on gradients.
        counters: how many votes they have seen, if the optimizer's own count of steps does not say so.
        process_set: the ranks that vote.
    """

    def __init__(self, optimizer):
        step = step_of(optimizer)
        self.slots, self.counters, self._steps = step.momenta()
        self.process_set = step.process_set

    @property
    def has_history(self) -> bool:
        """Whether they have seen a vote, here or before they were saved."""
        return bool(self.slots) and int(self._steps.numpy()) > 0

    def share(self, has_history: bool, process_set):
        """Gives ranks without a history the mean of the others' momenta. A collective."""
        voice = tf.constant(int(has_history), tf.int32)
        number = int(hvd.allreduce(voice, op=hvd.Sum, name="horovod_sign.tf.histories", process_set=process_set))
        if number in (0, process_set.size()):
            return
        for i, slot in enumerate(self.slots):
            if slot.shape.num_elements() == 0:
                continue
            mine = slot.read_value() if has_history else tf.zeros(slot.shape)
            name = f"horovod_sign.tf.mean_momentum.{i}"
            total = hvd.allreduce(mine, op=hvd.Sum, name=name, process_set=process_set)
            if not has_history:
                slot.assign(total / number)

    def gather(self) -> dict[str, np.ndarray]:
        """The momenta of all ranks along the first axis of each array, and the counter. A collective."""
        gathered = {}
        for i, slot in enumerate(self.slots):
            name = f"horovod_sign.tf.gather_momentum.{i}"
            rows = hvd.allgather(slot.read_value()[None], name=name, process_set=self.process_set)
            gathered[f"momentum{i}"] = rows.numpy()
        for counter in self.counters:
            gathered["votes"] = counter.numpy()
        return gathered

    def take(self, gathered: dict[str, np.ndarray]):
        """Sets this rank's from what `gather` gave, maybe of another number of ranks."""
        rank, size = self.process_set.rank(), self.process_set.size()
        for i, slot in enumerate(self.slots):
            slot.assign(of_rank(gathered[f"momentum{i}"], rank, size))
        for counter in self.counters:
            counter.assign(gathered["votes"])
