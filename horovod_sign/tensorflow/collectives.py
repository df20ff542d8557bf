"""The three collectives of a vote as Horovod ops in the caller's graph (or at once, when executing eagerly)."""

import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_sign.tensorflow import farewell
from horovod_sign.voting.collectives import Allgather, Alltoall, Request


def carry_out(protocol, process_set, name: str, rank: int, size: int):
    """Runs a protocol; returns its decision, and the bytes that this rank has sent (a scalar int64 tensor).

    Args:
        protocol: the generator, from `voting.protocols`.
        process_set: Horovod's, of the ranks that vote.
        name: of the Horovod ops: the same on all ranks, and no other vote in flight has it.
        rank, size: this rank among those that vote, and how many they are.
    """
    phase, result, sent = 0, None, tf.constant(0, tf.int64)
    while True:
        try:
            request = protocol.send(result)
        except StopIteration as stop:
            return stop.value, sent
        sent += tf.cast(_bytes_sent(request, rank, size), tf.int64)
        result = _perform(request, process_set, f"{name}.{phase}")
        phase += 1


def _perform(request: Request, process_set, name: str) -> tf.Tensor:
    if isinstance(request, Alltoall):
        received, lengths = hvd.alltoall(
            request.buffer, request.lengths, name=name, ignore_name_scope=True, process_set=process_set
        )
        return farewell.heard_in_messages(received, lengths)
    if isinstance(request, Allgather):
        return hvd.allgather(request.buffer, name=name, ignore_name_scope=True, process_set=process_set)
    summed = hvd.allreduce(request.words, op=hvd.Sum, name=name, ignore_name_scope=True, process_set=process_set)
    return farewell.heard_in_counts(tf.ensure_shape(summed, request.words.shape))


def _bytes_sent(request: Request, rank: int, size: int):
    """As `voting.collectives.bytes_sent`, for lengths that are known only when the step runs."""
    if isinstance(request, Alltoall):
        return tf.size(request.buffer) - request.lengths[rank]
    if isinstance(request, Allgather):
        return (size - 1) * tf.size(request.buffer)
    return 2 * (size - 1) * 8 * request.words.shape[0] // size
