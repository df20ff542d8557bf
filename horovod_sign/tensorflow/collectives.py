"""The three collectives of a vote as Horovod ops in the caller's graph (or at once, when executing eagerly)."""

import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_sign.voting.collectives import Allgather, Alltoall, Request


def carry_out(protocol, process_set, name: str):
    """Runs a protocol and returns its decision.

    Args:
        protocol: the generator, from `voting.protocols`.
        process_set: Horovod's, of the ranks that vote.
        name: of the Horovod ops: the same on all ranks, and no other vote in flight has it.
    """
    phase, result = 0, None
    while True:
        try:
            request = protocol.send(result)
        except StopIteration as stop:
            return stop.value
        result = _perform(request, process_set, f"{name}.{phase}")
        phase += 1


def _perform(request: Request, process_set, name: str) -> tf.Tensor:
    if isinstance(request, Alltoall):
        received, _ = hvd.alltoall(
            request.buffer, request.lengths, name=name, ignore_name_scope=True, process_set=process_set
        )
        return received
    if isinstance(request, Allgather):
        return hvd.allgather(request.buffer, name=name, ignore_name_scope=True, process_set=process_set)
    summed = hvd.allreduce(request.words, op=hvd.Sum, name=name, ignore_name_scope=True, process_set=process_set)
    return tf.ensure_shape(summed, request.words.shape)
