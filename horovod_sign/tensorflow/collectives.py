"""The three collectives of a vote as Horovod ops in the caller's graph (or at once, when executing eagerly)."""

from typing import Any, NamedTuple

import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_sign.tensorflow import farewell
from horovod_sign.tensorflow.repeated import at_each_run
from horovod_sign.voting.collectives import Allgather, Alltoall, Average, Request, Within
from horovod_sign.voting.nodes import Nodes


class Carrier(NamedTuple):
    """Horovod's ops, for those that vote.

    Attributes:
        process_set: Horovod's, of the ranks that vote; where nodes do, of their first ranks.
        rank, size: this rank, or its node, among those that vote, and how many they are.
        nodes: those that vote, instead of ranks.
    """

    process_set: Any
    rank: int
    size: int
    nodes: Nodes | None = None

    def perform(self, request: Request, name: str):
        """The result of a request, and whether a rank has said farewell in it: a scalar bool tensor, or None."""
        options = {"ignore_name_scope": True, "process_set": self.process_set, "name": name}
        if isinstance(request, Alltoall):
            buffer = at_each_run(request.buffer)
            received, lengths = hvd.alltoall(buffer, request.lengths, **options)
            return received, farewell.left_in_messages(received, lengths)
        if isinstance(request, Allgather):
            return hvd.allgather(at_each_run(request.buffer), **options), None
        summed = hvd.allreduce(at_each_run(request.words), op=hvd.Sum, **options)
        return tf.ensure_shape(summed, request.words.shape), farewell.left_in_counts(summed)

    def perform_within(self, request: Allgather | Average, name: str):
        """The result of a request among the ranks of this node."""
        options = {"ignore_name_scope": True, "process_set": self.nodes.own}
        name = f"{name}.node{self.nodes.number}"
        if isinstance(request, Allgather):
            return hvd.allgather(at_each_run(request.buffer), name=f"{name}.share", **options)
        tensors = [at_each_run(tensor) for tensor in request.tensors]
        means = hvd.grouped_allreduce(tensors, name=f"{name}.mean", op=hvd.Average, **options)
        return [tf.ensure_shape(mean, tensor.shape) for mean, tensor in zip(means, request.tensors, strict=True)]


def carry_out(protocols: list, carrier: Carrier, name: str) -> list[tuple]:
    """Runs protocols: in a graph beside each other; when executing eagerly, one after the other.

    Args:
        protocols: generators, from `voting.protocols`.
        carrier: what performs their requests.
        name: what the names of the Horovod ops begin with: the same on all ranks, and no other vote in flight has it.

    Returns:
        For each protocol its decision, and the bytes that this rank has sent (a scalar int64 tensor).
    """
    runs = [_Run(each, carrier, f"{name}.{number}") for number, each in enumerate(protocols)]
    for together in [[run] for run in runs] if tf.executing_eagerly() else [runs]:
        for run in together:
            run.begin()
        heard = [run.result for run in together]
        if carrier.nodes is None:  # else all have been asked who is there
            heard = farewell.unless_left(heard, [run.left for run in together])
        for run, result in zip(together, heard, strict=True):
            run.go_on(result)
    return [(run.decision, run.sent) for run in runs]


class _Run:
    """A protocol that runs.

    Attributes:
        result: of the first request; None: there is none.
        left: scalar bool tensor: a rank has said farewell in it.
        decision, sent: as `carry_out` returns them.
    """

    def __init__(self, protocol, carrier: Carrier, name: str):
        self._protocol, self._carrier, self._name = protocol, carrier, name
        self._phase, self.sent = 0, tf.constant(0, tf.int64)
        self.result, self.left, self.decision = None, tf.constant(False), None

    def begin(self):
        request = self._next_request(None)
        if request is not None:
            self.result, self.left = self._perform(request)

    def go_on(self, result):
        while self.decision is None:
            request = self._next_request(result)
            if request is not None:
                result, _ = self._perform(request)

    def _next_request(self, result) -> Request | None:
        try:
            return self._protocol.send(result)
        except StopIteration as stop:
            self.decision = stop.value
            return None

    def _perform(self, request):
        if isinstance(request, Within):
            return self._carrier.perform_within(request.request, self._name), None
        sent = _bytes_sent(request, self._carrier.rank, self._carrier.size)
        self.sent += tf.cast(sent, tf.int64)
        # Ranks do not all have the same requests where nodes vote, which have one of each kind.
        name = f"{self._name}.{self._phase if self._carrier.nodes is None else type(request).__name__}"
        self._phase += 1
        return self._carrier.perform(request, name)


def _bytes_sent(request: Request, rank: int, size: int):
    """As `voting.collectives.bytes_sent`, for lengths that are known only when the step runs."""
    if isinstance(request, Alltoall):
        return tf.size(request.buffer) - request.lengths[rank]
    if isinstance(request, Allgather):
        return (size - 1) * tf.size(request.buffer)
    return 2 * (size - 1) * 8 * request.words.shape[0] // size
