"""Do the ranks still have the same weights, and step with the same numbers? Asked once in a while, told once.

The learning rates and other options of the model's optimizers are compared, and checksums of its trainable variables:
all of a small model, of a large one a part that moves on from time to time, since replicas that have parted differ
nearly everywhere. Moving averages (of BatchNormalization) and the scales of losses are each rank's own.
"""

import zlib
from collections.abc import Iterator
from typing import Any

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf

from horovod_sign.graphs.variables import common_name
from horovod_sign.tensorflow.handshake import EagerCollectives
from horovod_sign.tensorflow.keras import models
from horovod_sign.tensorflow.keras.distributed import inner_optimizer
from horovod_sign.voting import replicas
from horovod_sign.voting.protocols import Vote

# Bytes of variables that are read for a comparison: a few milliseconds.
CHECKED_BYTES = 2**24
_REMEDIES = {
    "numbers": (
        "all ranks must step with the same numbers, or their replicas part; what goes by each rank's own loss "
        "(ReduceLROnPlateau) must be given the mean of all: put hvs.callbacks.MetricAverageCallback before it"
    ),
    "parameters": (
        "the replicas have parted, and votes do not bring them together again; give fit "
        "hvs.callbacks.BroadcastGlobalVariablesCallback(0), and change weights on all ranks alike"
    ),
    "layout": "all ranks must have the same optimizers and the same trainable variables",
}


class ReplicaCheck:
    """Compares the ranks of a model, and warns on all of them. Says each kind of difference once.

    Args:
        process_set: Horovod's, of the ranks that compare.
    """

    def __init__(self, process_set: Any = hvd.global_process_set) -> None:
        self._process_set, self._checks = process_set, 0
        self._warnings = replicas.Warnings(_REMEDIES)

    def compare(self, model: keras.Model, when: str, weights: bool = True) -> None:
        """A collective.

        Args:
            model: the ranks' model.
            when: for the warning.
            weights: whether the variables are compared too: not while some ranks may have none yet.
        """
        rank, size = self._process_set.rank(), self._process_set.size()
        if size == 1:
            return
        items = [*_numbers(model), *(_checksums(model, self._checks) if weights else ())]
        self._checks += weights
        comparison = Vote(
            replicas.compare(items, rank, size), EagerCollectives(self._process_set), "horovod_sign.tf.replicas"
        )
        self._warnings.tell(comparison.wait(), when)


class CheckReplicasCallback(keras.callbacks.Callback):
    """Compares, every so many batches, learning rates, other options and checksums of weights of all ranks.

    All ranks are warned, once of each kind, with the ranks and what each has: nothing in a vote would show it.
    `BroadcastGlobalVariablesCallback` does the same at the beginning of each epoch.

    Args:
        every: how many batches. It costs two or three milliseconds.
        process_set: Horovod's.
    """

    def __init__(self, every: int = 100, process_set: Any = hvd.global_process_set) -> None:
        super().__init__()
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be a number of batches, an integer of at least 1, got {every!r}")
        self.every, self._check, self._batches = every, ReplicaCheck(process_set), 0

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._batches += 1
        if self._batches % self.every == 0:
            self._check.compare(self.model, f"after {self._batches} batches")


def _numbers(model: keras.Model) -> Iterator[replicas.Item]:
    for name, optimizer in models.optimizers_of(model).items():
        inner = inner_optimizer(optimizer)
        options = {k: v for k, v in inner.get_config().items() if k not in ("name", "learning_rate")}
        options["learning_rate"] = float(keras.ops.convert_to_numpy(inner.learning_rate))
        yield from replicas.numbers(options, sorted(options), name)


def _checksums(model: keras.Model, number: int) -> Iterator[replicas.Item]:
    variables = model.trainable_variables
    sizes = [int(np.prod(v.shape)) * tf.as_dtype(v.dtype).size for v in variables]
    for i, start, stop in replicas.parts(sizes, number, CHECKED_BYTES):
        v = variables[i]
        piece = np.ascontiguousarray(v.numpy()).reshape(-1).view(np.uint8)[start:stop]
        name = f"the checksum of {common_name(v.path)} {tuple(v.shape)}"
        yield replicas.Item("parameters", name, f"{zlib.crc32(piece):08x}")  # type: ignore[arg-type]
