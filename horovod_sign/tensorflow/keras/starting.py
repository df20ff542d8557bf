"""All ranks start alike: with the weights and the optimizers' states that one of them has.

Keras makes the variables of many models in their first batch. What is there is broadcast before it, and all after it.
"""

import hashlib
import warnings
from typing import Any

import horovod.tensorflow as hvd
import numpy as np

from horovod_sign.tensorflow.broadcasting import broadcast_variables
from horovod_sign.tensorflow.keras import models
from horovod_sign.tensorflow.keras.distributed import is_distributed
from horovod_sign.tensorflow.keras.states import OptimizerStates, shared_variables

_PARTED = (
    "the replicas have parted in a step, since {} does not vote and nothing else reduces the gradients: wrap it by "
    "hvs.DistributedOptimizer, or take the gradients by hvs.DistributedGradientTape"
)


class Start:
    """The start of a training by `fit`. A collective of ranks that are more than one.

    Args:
        model: compiled.
        root_rank: whose values.
        process_set: Horovod's.
        what: who asks, for errors.

    Raises:
        TypeError: on some rank the training certainly takes no vote. On all ranks.
    """

    def __init__(self, model: Any, root_rank: int, process_set: Any, what: str) -> None:
        self._model, self._root_rank, self._process_set = model, root_rank, process_set
        self._after_batches = []
        models.agree_to_vote(model, what, process_set)
        models.build_optimizer(model)
        self._begin()
        if models.may_not_vote(model):
            self._after_batches.append(self._compare)

    def batch_ends(self) -> None:
        """To be called after each batch."""
        if self._after_batches:
            self._after_batches.pop(0)()

    def _begin(self) -> None:
        built, alike = self._ask()
        optimizers = models.optimizers_of(self._model)
        histories = histories_of(optimizers)
        if built.all() or alike:
            start_alike(self._model, optimizers, self._root_rank, self._process_set)
        if built.all():
            return
        # What a rank has loaded is not to be changed by a step with ranks that have yet to make it.
        keep = built[self._process_set.rank()] and not alike
        saved = [(v, v.numpy()) for v in all_variables(self._model, optimizers)] if keep else []
        self._after_batches.append(lambda: self._begin_again(saved, None if alike else histories))

    def _begin_again(self, saved: Any, histories: Any) -> None:
        for variable, value in saved:
            variable.assign(value)
        optimizers = models.optimizers_of(self._model)
        start_alike(self._model, optimizers, self._root_rank, self._process_set, histories)

    def _ask(self) -> tuple[np.ndarray, bool]:
        """On which ranks all is built, and whether all ranks have the same variables."""
        optimizers = models.optimizers_of(self._model).values()
        built = models.is_built(self._model) and all(each.built for each in optimizers)
        variables = [*self._model.weights, *(v for each in optimizers for v in each.variables)]
        layout = "\n".join(f"{v.dtype} {tuple(v.shape)}" for v in variables)
        rows = self._allgather(bytes([built]) + hashlib.blake2b(layout.encode(), digest_size=16).digest(), "built")
        return rows[:, 0].astype(bool), bool((rows[:, 1:] == rows[0, 1:]).all())

    def _compare(self) -> None:
        """Warns on all ranks if a step has made trainable variables different that were the same before."""
        digest = hashlib.blake2b(digest_size=16)
        for v in self._model.trainable_variables:
            digest.update(np.ascontiguousarray(v.numpy()).tobytes())
        rows = self._allgather(digest.digest(), "digests")
        if (rows != rows[0]).any():
            steppers = models.stepping(self._model).items()
            silent = [f"model.{name}" for name, each in steppers if not is_distributed(each)]
            warnings.warn(_PARTED.format(" and ".join(silent)), RuntimeWarning, stacklevel=2)

    def _allgather(self, row: bytes, name: str) -> np.ndarray:
        row = np.frombuffer(row, np.uint8)[None]
        return hvd.allgather(row, name=f"horovod_sign.tf.{name}", process_set=self._process_set).numpy()


def start_alike(
    model: Any, optimizers: dict, root_rank: int, process_set: Any = hvd.global_process_set, histories: Any = None
) -> None:
    """Gives all ranks the weights of `model`, and the state of `optimizers` as far as they are built, of one rank.

    All but the momenta to vote by. Those stay where there is a history; other ranks get the mean of them.

    Args:
        model, optimizers: the same on all ranks; optimizers by name.
        root_rank, process_set: as in Horovod.
        histories: as `histories_of` said before.
    """
    histories = histories or histories_of(optimizers)
    shared = [v for each in optimizers.values() for v in shared_variables(each)]
    if model.weights or shared:
        broadcast_variables([*model.weights, *shared], root_rank, process_set)
    for name, each in optimizers.items():
        if is_distributed(each) and each.built:
            OptimizerStates(each).share(histories[name], process_set)


def histories_of(optimizers: dict) -> dict[str, bool]:
    """Whether this rank's momenta of each optimizer have seen a vote."""
    return {
        name: is_distributed(each) and each.built and OptimizerStates(each).has_history
        for name, each in optimizers.items()
    }


def all_variables(model: Any, optimizers: dict) -> list:
    """The weights of a model and all that its optimizers remember, this rank's momenta included."""
    variables = [*model.weights, *(v for each in optimizers.values() for v in each.variables)]
    known = {id(v.value) for v in variables}
    for each in optimizers.values():
        if is_distributed(each) and each.built:
            own = OptimizerStates(each)
            variables += [v for v in (*own.slots, *own.counters) if id(v) not in known]
    return variables
