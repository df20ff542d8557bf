"""Loss scaling and votes: who overflowed, and what becomes of each rank's scale.

A vote knows no scale, so each rank has its own: one that overflows abstains in that step and lowers its scale, and the
others neither wait nor lower theirs.
"""

from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_sign.graphs.ballots import all_finite
from horovod_sign.graphs.places import host, on_host
from horovod_sign.tensorflow.repeated import at_each_run

# Below it a rank does not go while others vote: it is not the scale then that makes its gradients overflow, and one
# that has fallen to 0 would not come back when they are good again.
_LEAST = 1.0


@on_host
def speaking(finite: tf.Tensor, name: str, process_set: Any) -> tf.Tensor:
    """How many ranks have finite gradients. Ranks that have joined have none.

    Args:
        finite: scalar bool: this rank has.
        name: of the Horovod op.
        process_set: Horovod's, of the ranks that vote.
    """
    return hvd.allreduce(
        at_each_run(tf.cast(finite, tf.int32)), op=hvd.Sum, name=name, ignore_name_scope=True, process_set=process_set
    )


def lowered(scale: tf.Tensor, heard: tf.Tensor) -> tf.Tensor:
    """A rank's scale after an overflow; `heard`: whether other ranks had none."""
    return tf.where(heard, tf.maximum(scale * 0.5, tf.minimum(scale, _LEAST)), scale * 0.5)


def follow(optimizer: Any, finite: tf.Tensor, heard: tf.Tensor) -> None:
    """Moves the scale of a LossScaleOptimizer after a step, as it does by itself.

    Args:
        optimizer: built.
        finite: scalar bool: this rank's gradients were finite.
        heard: scalar bool: those of any rank were.
    """
    counter, scale = optimizer.step_counter.value, optimizer.dynamic_scale.value
    grows = finite & (counter == optimizer.dynamic_growth_steps - 1)
    scale.assign(tf.where(finite, tf.where(grows, scale * 2.0, scale), lowered(scale, heard)))
    counter.assign(tf.where(finite & ~grows, counter + 1, tf.zeros_like(counter)))


class Scale:
    """The scale of one step's loss, where a tape votes and a Keras optimizer has scaled the loss.

    Args:
        optimizer: a LossScaleOptimizer, or one with a `loss_scale_factor`; not distributed.
        gradients: this rank's, scaled; without None.
        name: of the Horovod op.
        process_set, size: Horovod's, of the ranks that vote, and how many they are.

    Attributes:
        abstaining: scalar bool tensor: this rank's gradients overflowed; None: nobody looks for that.
        heard: whether those of any rank count.
    """

    def __init__(self, optimizer: Any, gradients: list, name: str, process_set: Any, size: int) -> None:
        self._optimizer = optimizer
        self.abstaining: Any = None
        self.heard: Any = True
        self._dynamic = hasattr(optimizer, "initial_scale")
        if not self._dynamic:
            self._scale = tf.constant(optimizer.loss_scale_factor, tf.float32)
            return
        built = optimizer.built
        self._scale = optimizer.dynamic_scale.value.read_value() if built else tf.constant(optimizer.initial_scale)
        finite = all_finite(gradients) if gradients else tf.constant(True)
        voters = speaking(finite, name, process_set)
        with host():
            self.abstaining = ~finite
        # One that is not built has no variables yet: then all leave the step out, by which it lowers its scale itself.
        self.heard = voters > 0 if built else voters == size

    def unscaled(self, gradients: list) -> list:
        """Gradients of the loss itself, in float32 or float64; None stays None."""
        wide = [g if g is None or g.dtype == tf.float64 else tf.cast(g, tf.float32) for g in gradients]
        return [g if g is None else g / tf.cast(self._scale, g.dtype) for g in wide]

    def scaled(self, votes: list) -> list:
        """What becomes votes when the optimizer divides it by its scale, or is NaN, so that it leaves the step out."""
        scale = self._scale
        if self._dynamic and self._optimizer.built:
            lower = self.abstaining & self.heard
            scale = tf.where(lower, lowered(scale, self.heard), scale)
            self._optimizer.dynamic_scale.value.assign(scale)
            # It adds 1 after a step, and so begins to count anew.
            counter = self._optimizer.step_counter.value
            counter.assign(tf.where(lower, -tf.ones_like(counter), counter))
        scale = scale / tf.cast(self.heard, tf.float32) if self._dynamic else scale
        wide = [v if v is None or v.dtype == tf.float64 else tf.cast(v, tf.float32) for v in votes]
        return [v if v is None else v * tf.cast(scale, v.dtype) for v in wide]
