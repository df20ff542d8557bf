"""The momenta that a distributed optimizer votes by: each rank's own, see `kept`."""

from typing import Any

from horovod_sign.tensorflow.kept import Kept
from horovod_sign.tensorflow.keras.distributed import is_distributed, step_of


def shared_variables(optimizer: Any) -> list:
    """An optimizer's variables that are the same on all ranks."""
    if not (is_distributed(optimizer) and optimizer.built):
        return list(optimizer.variables)
    own = Momenta(optimizer)
    mine = {id(slot) for slot in own.slots}
    return [v for v in optimizer.variables if id(v.value) not in mine] + own.counters


class Momenta(Kept):
    """This rank's momenta of a distributed optimizer, which must be built.

    Attributes:
        slots: float32 variables, one for each variable of the optimizer; none if votes are on gradients.
        counters: how many votes they have seen, if the optimizer's own count of steps does not say so.
        process_set: the ranks that vote.
    """

    def __init__(self, optimizer: Any) -> None:
        step = step_of(optimizer)
        super().__init__(*step.momenta(), step.process_set)
