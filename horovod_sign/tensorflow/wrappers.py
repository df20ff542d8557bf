"""Other wrappers of `horovod.tensorflow`, where Horovod's would average, or with Keras 3 reduce nothing."""

from typing import Any

import tensorflow as tf

from horovod_sign.tensorflow.tape import DistributedGradientTape


def DistributedOptimizer(optimizer: Any, name: str | None = None, **options: Any) -> Any:
    """`horovod_sign.tensorflow.keras.DistributedOptimizer`, for Keras 3 optimizers.

    Raises:
        TypeError: an optimizer of TensorFlow 1; otherwise as there.
    """
    if isinstance(optimizer, tf.compat.v1.train.Optimizer):
        raise TypeError(
            f"hvs.DistributedOptimizer is for Keras 3 optimizers, got {type(optimizer).__name__} of TensorFlow 1: take "
            "one of keras.optimizers, or give the gradients of an hvs.DistributedGradientTape to this one"
        )
    from horovod_sign.tensorflow import keras  # not before it is asked for

    return keras.DistributedOptimizer(optimizer, name, **options)


def PartialDistributedGradientTape(
    gradtape: tf.GradientTape, *args: Any, local_layers: Any = None, **options: Any
) -> tf.GradientTape:
    """`DistributedGradientTape`, if there are no local layers.

    Raises:
        NotImplementedError: there are: a vote is on all sources.
    """
    tape = DistributedGradientTape(gradtape, *args, **options)
    if local_layers:
        tape.register_local_source(local_layers)
    return tape
