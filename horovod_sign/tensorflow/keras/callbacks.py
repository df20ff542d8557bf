"""Horovod's Keras callbacks, for Keras 3 (with which Horovod's own do not work), and one about votes."""

import os
from collections.abc import Callable, Iterable
from typing import Any

import horovod.tensorflow as hvd
import horovod.tensorflow.keras.callbacks
import keras
import numpy as np

from horovod_sign.adopted import adopt
from horovod_sign.tensorflow.election import Election
from horovod_sign.tensorflow.handshake import agree
from horovod_sign.tensorflow.keras import models
from horovod_sign.tensorflow.keras.distributed import election_of
from horovod_sign.tensorflow.keras.replicas import CheckReplicasCallback, ReplicaCheck
from horovod_sign.tensorflow.keras.saving import check_saving, save_model
from horovod_sign.tensorflow.keras.starting import Start

__all__ = [
    "BestModelCheckpoint",
    "BroadcastGlobalVariablesCallback",
    "CheckReplicasCallback",
    "LearningRateScheduleCallback",
    "LearningRateWarmupCallback",
    "MetricAverageCallback",
    "SaveModelCallback",
    "VoteStatisticsCallback",
]
__all__ += adopt(globals(), horovod.tensorflow.keras.callbacks, __all__)


class BroadcastGlobalVariablesCallback(keras.callbacks.Callback):
    """At the start of each `fit` gives all ranks the weights and the optimizers' states of one rank.

    So all start alike, from random weights or from a checkpoint that one rank has read. Of a model that is built in its
    first batch they get the rest after it, as in Horovod. Seeds of random layers are not weights and stay each rank's
    own. So does the momentum that a rank votes by, if it has loaded one (`hvs.load_model`) or has trained; ranks
    without get the mean of those of the others.

    Raises TypeError, on all ranks, if the optimizer of some rank does not vote; warns if a training step of the model's
    own leaves the replicas different.

    Before each epoch the ranks compare learning rates, other options and checksums of weights, and are warned, once, if
    these differ (see `CheckReplicasCallback`).

    Args:
        root_rank: whose values.
        process_set: Horovod's.

    Raises:
        NotImplementedError: Horovod's `local_variables`, which each rank would keep for itself.
    """

    def __init__(
        self,
        root_rank: int,
        device: str = "",
        process_set: hvd.ProcessSet = hvd.global_process_set,
        local_variables: Iterable[Any] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(process_set, list | tuple):  # Horovod's order: root_rank, device, local_variables
            local_variables, process_set = process_set, hvd.global_process_set
        if local_variables:
            raise NotImplementedError(
                "local_variables are not possible: votes are on all variables of a model, so that all start alike; "
                "keep what each rank has for itself out of the model"
            )
        self.root_rank, self.process_set = root_rank, process_set
        self._check, self._first_epoch = ReplicaCheck(process_set), True
        self._start: Start | None = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        # Before the first batch some ranks may have no weights yet.
        self._check.compare(self.model, f"before epoch {epoch + 1}", weights=not self._first_epoch)
        self._first_epoch = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._first_epoch = True
        if self.process_set.size() > 1:
            self._start = Start(self.model, self.root_rank, self.process_set, type(self).__name__)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._start is not None:
            self._start.batch_ends()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._start = None


class BestModelCheckpoint(keras.callbacks.ModelCheckpoint):
    """`keras.callbacks.ModelCheckpoint` of the best model so far, whose `filepath` is set later, as in Horovod."""

    def __init__(
        self,
        monitor: str = "val_loss",
        verbose: int = 0,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
        filepath: str | os.PathLike[str] | None = None,
    ) -> None:
        # Keras 3 looks at the name here, and wants an ending.
        later = "later.weights.h5" if save_weights_only else "later.keras"
        super().__init__(
            filepath or later,
            monitor=monitor,
            verbose=verbose,
            save_best_only=True,
            save_weights_only=save_weights_only,
            mode=mode,
            save_freq=save_freq,
        )
        self.filepath = filepath

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self.filepath is None:
            raise ValueError("BestModelCheckpoint has no filepath: set callback.filepath before fit, or give filepath=")
        super().on_train_begin(logs)


class MetricAverageCallback(keras.callbacks.Callback):
    """At the end of each epoch replaces the metrics by their means over all ranks.

    Put it before callbacks that use metrics (checkpoints, early stopping, ReduceLROnPlateau), so that all ranks decide
    alike.
    """

    def __init__(self, device: str = "", process_set: hvd.ProcessSet = hvd.global_process_set) -> None:
        super().__init__()
        self.process_set = process_set

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        models.agree_to_vote(self.model, type(self).__name__, self.process_set)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is None or self.process_set.size() == 1:
            return
        keys, values, error = sorted(logs), None, None
        try:
            values = np.array([logs[key] for key in keys], np.float64)
        except Exception as invalid:  # no number, whatever it is: the other ranks wait
            error = invalid
        agree("MetricAverageCallback", [("the list of metrics", ", ".join(keys))], error, self.process_set)
        means = hvd.allreduce(values, op=hvd.Average, name="horovod_sign.tf.metrics", process_set=self.process_set)
        logs.update(zip(keys, np.asarray(means).tolist(), strict=True))


class VoteStatisticsCallback(keras.callbacks.Callback):
    """Adds to the metrics of each epoch what happened in its votes, as this rank sees it.

    So `History`, `TensorBoard` and `CSVLogger` have it, if they come after this callback in the list. Before
    `MetricAverageCallback` in the list, the metrics are means over all ranks.

        vote_agreement      where this rank voted and the vote is not 0, the share on which they are the same
        vote_abstained      share of coordinates on which this rank abstained
        vote_ties           share on which the vote is 0
        vote_nans           coordinates that abstained because they were NaN on this rank, in the whole epoch
        vote_bytes_sent     by this rank to others, in a step

    Of a model that votes by several optimizers, or by another attribute than `optimizer`, they are named after it:
    `d_optimizer_vote_agreement`.
    """

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._voters()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._before = {name: election_of(each).totals() for name, each in self._voters().items()}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        for name, optimizer in self._voters().items():
            prefix = "" if list(self._before) == ["optimizer"] else f"{name}_"
            self._report(election_of(optimizer), self._before[name], prefix, epoch, {} if logs is None else logs)

    def _voters(self) -> dict:
        found = models.voting(self.model)
        if not found:
            names = " and ".join(f"model.{name}" for name in models.stepping(self.model))
            raise TypeError(f"VoteStatisticsCallback finds no votes: wrap {names} by hvs.DistributedOptimizer")
        return found

    def _report(
        self, election: Election, before: tuple[int, Any], prefix: str, epoch: float, logs: dict[str, Any]
    ) -> None:
        statistics = election.statistics(before)
        steps = max(statistics.step - before[0], 1)
        fields = {field: getattr(statistics, field) for field in ("agreement", "abstained", "ties")}
        fields.update(nans=statistics.nans, bytes_sent=statistics.bytes_sent / steps)
        logs.update({f"{prefix}vote_{field}": value for field, value in fields.items()})


class SaveModelCallback(keras.callbacks.Callback):
    """Saves the model by `hvs.save_model`, with the momenta of all ranks, at the end of each epoch. On all ranks.

    Args:
        filepath: ends in .keras; may name the epoch and metrics, as in "epoch{epoch:02d}.keras".
    """

    def __init__(self, filepath: str | os.PathLike[str]) -> None:
        super().__init__()
        self.filepath = str(filepath)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        check_saving(self.model)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        save_model(self.model, self.filepath.format(epoch=epoch + 1, **(logs or {})))


class LearningRateScheduleCallback(keras.callbacks.Callback):
    """Sets the learning rate to `initial_lr * multiplier(epoch)` from one epoch to another.

    Args:
        initial_lr: the learning rate that `multiplier` multiplies.
        multiplier: a number, or a function of the epoch.
        start_epoch, end_epoch: the epochs [start_epoch, end_epoch) in which this applies; None: without end.
        staircase: once per epoch (True), or at each batch, with fractions of epochs.
        momentum_correction: not possible with Keras 3, which compiles the momentum into the training step: False.
        steps_per_epoch: for staircase=False where Keras does not know it.
    """

    def __init__(
        self,
        initial_lr: float,
        multiplier: float | Callable[[float], float],
        start_epoch: int = 0,
        end_epoch: int | None = None,
        staircase: bool = True,
        momentum_correction: bool = False,
        steps_per_epoch: int | None = None,
    ) -> None:
        super().__init__()
        if momentum_correction:
            raise ValueError(
                "momentum_correction is not possible with Keras 3, which compiles the momentum into the training step, "
                "and a vote needs none: leave it out"
            )
        self.initial_lr, self.start_epoch, self.end_epoch = initial_lr, start_epoch, end_epoch
        self.staircase, self._steps_given = staircase, steps_per_epoch
        self.steps_per_epoch: Any = steps_per_epoch  # or what Keras says
        self.multiplier = multiplier if callable(multiplier) else lambda epoch: multiplier
        self._epoch = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        steppers = models.stepping(self.model)
        if steppers and "optimizer" not in steppers:
            raise ValueError(
                f"{type(self).__name__} sets the learning rate of model.optimizer, but this model trains by "
                f"{' and '.join(f'model.{name}' for name in steppers)}: give those a keras.optimizers.schedules"
            )
        if not self.staircase and not self._steps_given:  # each model that is trained with this callback has its own
            self.steps_per_epoch = (self.params or {}).get("steps")
            if not self.steps_per_epoch:
                raise ValueError(
                    f"{type(self).__name__} must know the steps of an epoch, which Keras does not know for this data: "
                    "give it steps_per_epoch"
                )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        if self.staircase:
            self._set(epoch)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if not self.staircase:
            self._set(self._epoch + batch / self.steps_per_epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            logs["lr"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))

    def _set(self, epoch: float) -> None:
        if epoch >= self.start_epoch and (self.end_epoch is None or epoch < self.end_epoch):
            self.model.optimizer.learning_rate = self.initial_lr * self.multiplier(epoch)


class LearningRateWarmupCallback(LearningRateScheduleCallback):
    """Raises the learning rate from `initial_lr / size` to `initial_lr` over the first epochs, batch by batch.

        lr(epoch) = initial_lr / size * (1 + epoch * (size - 1) / warmup_epochs)

    as Goyal et al. 2017 (arXiv 1706.02677), section 2.2. On one rank the learning rate stays `initial_lr`.

    Args:
        initial_lr: the learning rate after the warm-up. (Horovod's scripts multiply it by `hvd.size()`; votes do not
            grow with the number of ranks, so with them do not.)
        warmup_epochs: how many.
        momentum_correction, steps_per_epoch: as in `LearningRateScheduleCallback`.
        verbose: 1: rank 0 prints the learning rate at the end.
    """

    def __init__(
        self,
        initial_lr: float,
        warmup_epochs: int = 5,
        momentum_correction: bool = False,
        steps_per_epoch: int | None = None,
        verbose: int = 0,
    ) -> None:
        def multiplier(epoch: float) -> float:
            # The end of a batch, not its beginning, so that the last batch of the warm-up has the full rate.
            epoch += 1.0 / self.steps_per_epoch
            return 1.0 / hvd.size() * (epoch * (hvd.size() - 1) / warmup_epochs + 1)

        super().__init__(initial_lr, multiplier, 0, warmup_epochs, False, momentum_correction, steps_per_epoch)
        self.verbose = verbose

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_end(epoch, logs)
        if self.end_epoch == epoch + 1 and self.verbose and hvd.rank() == 0:
            rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
            print(f"Epoch {epoch + 1}: finished gradual learning rate warmup to {rate:g}.")
