"""Variables of our own, which belong to no traced function, wherever the trace is that first needs them."""

import tensorflow as tf
from tensorflow.python.ops.resource_variable_ops import ResourceVariable


def variable(value, dtype: tf.DType | None = None, name: str | None = None) -> tf.Variable:
    """A variable that is not trained. Made outside of any graph.

    Of a `tf.Variable` the function that is being traced would hear, also outside of its graph: TensorFlow then traces
    the function a second time, or raises an error if it was traced before.
    """
    with tf.init_scope():
        return ResourceVariable(value, trainable=False, dtype=dtype, name=name)
