"""What Horovod's ops are given, so that TensorFlow executes them each time that a graph runs."""

import functools
from typing import Any

import tensorflow as tf

from horovod_sign.graphs.places import host
from horovod_sign.graphs.variables import variable


def at_each_run(tensor: Any) -> tf.Tensor:
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
    with host():
        return variable(0, tf.int32)
