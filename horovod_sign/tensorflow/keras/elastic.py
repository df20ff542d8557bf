"""Elastic Horovod: ranks come and go, and votes go on among those that are there.

    state = hvs.elastic.KerasState(model, epoch=0)      # instead of Horovod's, which does not work with Keras 3

    @hvs.elastic.run                                    # instead of hvd.elastic.run
    def train(state):
        model.fit(..., initial_epoch=state.epoch, callbacks=[hvs.elastic.CommitStateCallback(state), ...])

After a reset the votes are among the new ranks. Each rank that was there before keeps its own momentum (after a
failure, that of its last commit); one that joins starts from the mean of theirs, and with rank 0's parameters.
"""

from typing import Any

import horovod.tensorflow as hvd
import horovod.tensorflow.keras.elastic
import keras
import tensorflow as tf
from horovod.common.elastic import ObjectState

from horovod_sign.adopted import adopt
from horovod_sign.tensorflow.election import lapse
from horovod_sign.tensorflow.failures import horovods_failures, run
from horovod_sign.tensorflow.keras import models
from horovod_sign.tensorflow.keras.distributed import is_distributed, step_of
from horovod_sign.tensorflow.keras.starting import all_variables, start_alike

__all__ = [
    "CommitStateCallback",
    "KerasState",
    "TensorFlowKerasState",
    "UpdateBatchStateCallback",
    "UpdateEpochStateCallback",
    "run",
]
__all__ += adopt(globals(), horovod.tensorflow.keras.elastic, __all__)


class KerasState(ObjectState):
    """The state of a Keras 3 model and its optimizer, and other values, for `run`.

    Args:
        model: built, and compiled unless there is an `optimizer`.
        optimizer: default: the model's.
        kwargs: values that all ranks have alike, as attributes of the state: `state.epoch`.

    Raises:
        ValueError: the model is not built, or there is no optimizer.
    """

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer | None = None, **kwargs: Any) -> None:
        if not (model.built or (models.trains_by_itself(model) and model.weights)):
            raise ValueError("the model has no variables yet: give it an Input, or call model.build, before KerasState")
        self.model, self.optimizer = model, optimizer or getattr(model, "optimizer", None)
        if self.optimizer is None:
            raise ValueError("KerasState needs an optimizer: call model.compile first, or give it one")
        self._optimizers = models.stepping(model) if optimizer is None else {"optimizer": optimizer}
        for name, each in self._optimizers.items():
            if not each.built and name != "optimizer":
                raise ValueError(f"model.{name} has no variables yet: call its build(variables) before KerasState")
            if not each.built:
                each.build(model.trainable_variables)
        self._save_variables()

        def broadcast(value: Any) -> Any:
            return hvd.broadcast_object(value, name="horovod_sign.tf.elastic")

        super().__init__(bcast_object=broadcast, get_rank=hvd.rank, **kwargs)

    def save(self) -> None:
        """Remembers the present state, for `restore`."""
        self._save_variables()
        super().save()

    def restore(self) -> None:
        """Goes back to what was saved last: this rank's own momentum, too."""
        variables = all_variables(self.model, self._optimizers)
        for variable, saved in zip(variables, self._saved, strict=True):
            variable.assign(saved)
        super().restore()

    def sync(self) -> None:
        """Gives all ranks rank 0's state, except that momenta stay with their ranks."""
        with horovods_failures():
            start_alike(self.model, self._optimizers, root_rank=0)
            super().sync()
        self._save_variables()

    def reset(self) -> None:
        """Horovod has been initialised anew: what was under way is void, and all agree again at the next vote."""
        lapse()
        for each in self._optimizers.values():
            if is_distributed(each):
                step_of(each).forget_sums()
        if getattr(self.model, "optimizer", None) is not None:
            self.model.make_train_function(force=True)

    def _save_variables(self) -> None:
        self._saved = [tf.identity(v) for v in all_variables(self.model, self._optimizers)]


class TensorFlowKerasState(KerasState):
    """`KerasState` by the name that Horovod has for loops of one's own. Its `backend` means nothing with Keras 3."""

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer | None = None,
        backend: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, optimizer, **kwargs)


class CommitStateCallback(keras.callbacks.Callback):
    """Commits the state after so many batches, and at the end of each epoch. Put it last in the list of callbacks.

    Args:
        state: a `KerasState`.
        batches_per_commit: a commit copies all variables, and a failure costs the batches since the last one.
    """

    def __init__(self, state: KerasState, batches_per_commit: int = 1) -> None:
        super().__init__()
        self.state, self.batches_per_commit = state, batches_per_commit

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self.model is not None:
            if self.model is not self.state.model:
                raise ValueError("CommitStateCallback commits another model than is trained: make both for each model")
            models.agree_to_vote(self.model, type(self).__name__, hvd.global_process_set)
        self._batches = 0  # also after a reset, so that all ranks commit together

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._batches += 1
        if self._batches % self.batches_per_commit == 0:
            self.state.commit()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.state.commit()


class UpdateBatchStateCallback(keras.callbacks.Callback):
    """Keeps `state.batch`, the number of the latest batch; 0 at the end of an epoch.

    Keras 3 does not let a callback shorten the first epoch after a reset, as Horovod's would: give `fit`
    `steps_per_epoch` for that, or begin the epoch anew.
    """

    def __init__(self, state: KerasState) -> None:
        super().__init__()
        self.state = state

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.state.batch = batch

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.state.batch = 0


class UpdateEpochStateCallback(keras.callbacks.Callback):
    """Keeps `state.epoch`, the number of epochs that are done. Put it before `CommitStateCallback` in the list.

    Give it to `model.fit` as `initial_epoch`; or, as in Horovod's examples, have `fit` count from 0 after each reset
    (`epochs=epochs - state.epoch`), and those that were done before are added.
    """

    def __init__(self, state: KerasState) -> None:
        super().__init__()
        self.state = state
        self._before: int | None = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._before = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._before is None:
            self._before = self.state.epoch if epoch == 0 else 0

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.state.epoch = (self._before or 0) + epoch + 1
