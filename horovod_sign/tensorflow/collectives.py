"""The three collectives of a vote as Horovod ops in the caller's graph (or at once, when executing eagerly)."""

import functools

import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_sign.tensorflow import farewell
from horovod_sign.tensorflow.variables import variable
from horovod_sign.voting.collectives import Allgather, Alltoall, Request


def carry_out(protocols: list, process_set, name: str, rank: int, size: int) -> list[tuple]:
    """Runs protocols: in a graph beside each other; when executing eagerly, one after the other.

    Args:
        protocols: generators, from `voting.protocols`.
        process_set: Horovod's, of the ranks that vote.
        name: what the names of the Horovod ops begin with: the same on all ranks, and no other vote in flight has it.
        rank, size: this rank among those that vote, and how many they are.

    Returns:
        For each protocol its decision, and the bytes that this rank has sent (a scalar int64 tensor).
    """
    runs = [_Run(each, process_set, f"{name}.{number}", rank, size) for number, each in enumerate(protocols)]
    for together in [[run] for run in runs] if tf.executing_eagerly() else [runs]:
        for run in together:
            run.begin()
        heard = farewell.unless_left([run.result for run in together], [run.left for run in together])
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

    def __init__(self, protocol, process_set, name, rank, size):
        self._protocol, self._name, self._rank, self._size = protocol, name, rank, size
        self._options = {"ignore_name_scope": True, "process_set": process_set}
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
        self.sent += tf.cast(_bytes_sent(request, self._rank, self._size), tf.int64)
        name = f"{self._name}.{self._phase}"
        self._phase += 1
        if isinstance(request, Alltoall):
            buffer = at_each_run(request.buffer)
            received, lengths = hvd.alltoall(buffer, request.lengths, name=name, **self._options)
            return received, farewell.left_in_messages(received, lengths)
        if isinstance(request, Allgather):
            return hvd.allgather(at_each_run(request.buffer), name=name, **self._options), None
        summed = hvd.allreduce(at_each_run(request.words), op=hvd.Sum, name=name, **self._options)
        return tf.ensure_shape(summed, request.words.shape), farewell.left_in_counts(summed)


def at_each_run(tensor) -> tf.Tensor:
    """The same tensor, which TensorFlow takes for no constant, even if it is one, as gradients may be.

    To TensorFlow, Horovod's ops have no side effects: it would send a constant once, while it optimizes the graph, and
    no more. A rank that traces again, or sends something else, would then wait for the others.
    """
    tensor = tf.convert_to_tensor(tensor)
    if tf.executing_eagerly():
        return tensor
    nothing = _nothing().read_value()
    if tensor.shape.rank == 0:
        return tensor + tf.cast(nothing, tensor.dtype)
    # Copies no memory. (The shape of what is reshaped would be found out.)
    return tf.slice(tensor, tf.repeat(nothing, tensor.shape.rank), tensor.shape.rank * [-1])


@functools.cache
def _nothing() -> tf.Variable:
    """The integer 0, of which TensorFlow does not know that it never changes."""
    with tf.device("CPU:0"):
        return variable(0, tf.int32)


def _bytes_sent(request: Request, rank: int, size: int):
    """As `voting.collectives.bytes_sent`, for lengths that are known only when the step runs."""
    if isinstance(request, Alltoall):
        return tf.size(request.buffer) - request.lengths[rank]
    if isinstance(request, Allgather):
        return (size - 1) * tf.size(request.buffer)
    return 2 * (size - 1) * 8 * request.words.shape[0] // size
