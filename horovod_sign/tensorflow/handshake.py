"""Do all ranks mean the same? By Horovod's ops for TensorFlow, executed eagerly, outside of whatever graph is made."""

from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from horovod_sign.algebra import counts_bits
from horovod_sign.graphs import bits as bit
from horovod_sign.graphs.ballots import own_ballot
from horovod_sign.graphs.packing import Coordinates
from horovod_sign.graphs.variables import common_name
from horovod_sign.rules import Rule
from horovod_sign.voting import handshake
from horovod_sign.voting.collectives import Allgather, AtOnce
from horovod_sign.voting.protocols import Vote


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


def described(variables: list[Coordinates], labels: list[str]) -> list[handshake.Item]:
    """What each variable is like, which all ranks must have alike."""
    names = map(common_name, labels)
    return [
        (f"variable {i}", f"{name} {v.dtype.name} {v.shape}")
        for i, (name, v) in enumerate(zip(names, variables, strict=True))
    ]


def invalid(
    rule: Rule, transport: str, ranks: int, variables: list[Coordinates], labels: list[str]
) -> Exception | None:
    """Why so many ranks cannot vote on these variables, as far as this rank knows."""
    for v, label in zip(variables, labels, strict=True):
        if v.dtype not in bit.DTYPES:
            names = ", ".join(d.name for d in bit.DTYPES)
            return TypeError(f"the gradient of {label} is {v.dtype.name}, but votes are on {names}")
    if rule.betas is None:
        try:
            _try_rule(rule, variables, labels)
        except RuntimeError as error:
            return error
    if transport == "counts":
        try:
            counts_bits(ranks)
        except ValueError as error:
            return error
    return None


def _try_rule(rule: Rule, variables: list[Coordinates], labels: list[str]) -> None:
    """Raises RuntimeError unless the rule is one for these variables: once they vote, the others wait."""
    for v, label in zip(variables, labels, strict=True):
        if v.count:
            zeros = [tf.zeros(v.shape) for _ in rule.states]
            try:
                own_ballot(rule, tf.zeros(v.shape), zeros, tf.constant(False))
            except RuntimeError as error:
                raise RuntimeError(f"{error} (variable {label})") from error
