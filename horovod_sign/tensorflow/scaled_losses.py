"""Which optimizer has scaled the loss of a tape: what `scale_loss` of a Keras optimizer returns bears its mark.

    scaled = optimizer.scale_loss(loss)                     # LossScaleOptimizer, or loss_scale_factor
    optimizer.apply(tape.gradient(scaled, variables), variables)

The optimizer divides by its scale what it is given, and looks for an overflow in it. A tape that gives votes must know
of the optimizer, to multiply them by the scale and to tell it of overflows; but it is shown nothing except the loss.
"""

import functools
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

_MARK = "_horovod_sign_scaled_by"
_latest = threading.local()
_watched: set[type] = set()


def watch() -> None:
    """Lets Keras 3's optimizers, if Keras is loaded, mark the losses that they scale."""
    optimizers = getattr(sys.modules.get("keras"), "optimizers", None)
    for name in ("Optimizer", "LossScaleOptimizer"):
        cls = getattr(optimizers, name, None)
        if cls is not None and hasattr(cls, "scale_loss") and cls not in _watched:
            _watched.add(cls)
            cls.scale_loss = _marking(cls.scale_loss)


def _marking(scale_loss: Callable[..., Any]) -> Callable[..., Any]:
    @tf.autograph.experimental.do_not_convert
    @functools.wraps(scale_loss)
    def marked(self: Any, loss: Any) -> Any:
        scaled = scale_loss(self, loss)
        if scaled is not loss and isinstance(scaled, tf.Tensor):
            setattr(scaled, _MARK, weakref.ref(self))
            _latest.scaled = weakref.ref(self), _here()
        return scaled

    return marked


def optimizer_of(target: Any, variables: Sequence[Any]) -> Any:
    """The optimizer that has scaled a loss, or None.

    Args:
        target: what a tape takes gradients of: what `scale_loss` returned, or computed from it in the same function.
        variables: tf.Variables, or other tensors, by which it takes them.
    """
    latest, where = getattr(_latest, "scaled", (None, None))
    _latest.scaled = (None, None)
    for loss in tf.nest.flatten(target):
        if hasattr(loss, _MARK):
            return getattr(loss, _MARK)()
    optimizer = latest() if latest is not None and where == _here() else None
    return optimizer if optimizer is not None and _may_train(optimizer, variables) else None


def _may_train(optimizer: Any, variables: Sequence[Any]) -> bool:
    known = getattr(getattr(optimizer, "inner_optimizer", optimizer), "_trainable_variables", None)
    own = {id(getattr(v, "value", v)) for v in known or ()}
    return not optimizer.built or all(id(v) in own for v in variables)


def _here() -> Any:
    """The graph in which operations are made; None: they are executed eagerly."""
    return None if tf.executing_eagerly() else weakref.ref(tf.compat.v1.get_default_graph())
