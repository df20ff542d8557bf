"""Variables of our own, which belong to no traced function, and what variables are called on all ranks."""

import re
from typing import Any

import tensorflow as tf
from tensorflow.python.ops.resource_variable_ops import ResourceVariable


def variable(value: Any, dtype: tf.DType | None = None, name: str | None = None) -> tf.Variable:
    """A variable that is not trained. Made outside of any graph.

    Of a `tf.Variable` the function that is being traced would hear, also outside of its graph: TensorFlow then traces
    the function a second time, or raises an error if it was traced before.
    """
    with tf.init_scope():
        return ResourceVariable(value, trainable=False, dtype=dtype, name=name)


def underlying(source: Any) -> Any:
    """The tf.Variable of a Keras variable; anything else as it is."""
    value = getattr(source, "value", None)
    return value if isinstance(value, tf.Variable) else source


def common_name(path: str) -> str:
    """What a variable is called on all ranks that have built the same model, for comparisons between them.

    The last of its names, since the layers of a loaded model are not called as those of one that was built; and
    without the number that Keras gives to a variable without a name, which counts all of this process.
    """
    return re.sub(r"^variable_\d+", "variable", path.rsplit("/", 1)[-1])
