"""The momenta that a distributed optimizer votes by: each rank's own, see `RankStates`."""

from typing import Any

from horovod_sign.tensorflow.keras.distributed import is_distributed, step_of
from horovod_sign.tensorflow.states import RankStates


def shared_variables(optimizer: Any) -> list:
    """An optimizer's variables that are the same on all ranks."""
    if not (is_distributed(optimizer) and optimizer.built):
        return list(optimizer.variables)
    own = OptimizerStates(optimizer)
    mine = {id(slot) for slot in own.slots}
    return [v for v in optimizer.variables if id(v.value) not in mine] + own.counters


class OptimizerStates(RankStates):
    """This rank's momenta of a distributed optimizer, which must be built.

    Attributes:
        slots: float32 variables, one for each variable of the optimizer; none if votes are on gradients.
        counters: how many votes they have seen, if the optimizer's own count of steps does not say so.
        process_set: the ranks that vote.
    """

    def __init__(self, optimizer: Any) -> None:
        step = step_of(optimizer)
        super().__init__(*step.states(), step.process_set)
