"""Do all ranks mean the same? By Horovod's ops for TensorFlow, executed eagerly, outside of whatever graph is made."""

from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from horovod_sign.voting import handshake
from horovod_sign.voting.collectives import Allgather, AtOnce, Vote


class EagerCollectives(AtOnce):
    """`voting.collectives.Collectives`, without the alltoall."""

    def __init__(self, process_set: Any) -> None:
        self._process_set = process_set
        self.rank, self.size = process_set.rank(), process_set.size()

    def start(self, request: Any, name: str) -> np.ndarray:
        if isinstance(request, Allgather):
            return np.asarray(hvd.allgather(request.buffer, name=name, process_set=self._process_set))
        words = tf.constant(request.words)
        return np.asarray(hvd.allreduce(words, op=hvd.Sum, name=name, process_set=self._process_set))


def agree(what: str, items: list[handshake.Item], error: Exception | None, process_set: Any, number: int = 0) -> int:
    """`voting.handshake.agree`, carried out. A collective."""
    with tf.init_scope():
        asked = handshake.agree(what, items, error, process_set.size(), number)
        return Vote(asked, EagerCollectives(process_set), f"horovod_sign.tf.{process_set.process_set_id}.agree").wait()
