"""SignSGD and Signum as Keras 3 optimizers: right on one process, and voted on in `DistributedOptimizer`.

One step is x <- x - lr * (v + weight_decay * x), where v is the sign of what the worker votes on (on one process), or
the majority vote of all (distributed). Keras applies its `weight_decay` first, x <- x - lr * weight_decay * x, which is
the same up to rounding: decoupled, as in Bernstein et al. 2019 (arXiv 1810.05291), Algorithm 1.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from horovod_sign import rules
from horovod_sign.tensorflow.ballots import momentum_signs, signs
from horovod_sign.tensorflow.election import Momentum

LearningRate: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule | Callable[[], float]

_CLIPPING = ("clipnorm", "clipvalue", "global_clipnorm")


class SignOptimizer(keras.optimizers.Optimizer):
    """What SignSGD and Signum share. A subclass says by `rule` what is voted on."""

    def __init__(self, learning_rate: LearningRate, weight_decay: float | None, name: str, **kwargs: Any) -> None:
        clipping = [key for key in _CLIPPING if kwargs.pop(key, None) is not None]
        if clipping:
            raise ValueError(
                f"{type(self).__name__} has no {', '.join(clipping)}: a step is a sign, whatever the size of the "
                "gradient; leave it out"
            )
        if isinstance(learning_rate, float):
            rules.check_step(learning_rate, weight_decay or 0.0)
        super().__init__(learning_rate=learning_rate, weight_decay=weight_decay, name=name, **kwargs)
        self._given_votes = False

    @property
    def rule(self) -> rules.Rule:
        """What a worker votes on."""
        raise NotImplementedError

    @contextmanager
    def given_votes(self) -> Iterator[None]:
        """Inside, `apply` takes what it is given for votes, not for gradients."""
        self._given_votes = True
        try:
            yield
        finally:
            self._given_votes = False

    def update_step(self, gradient: Any, variable: Any, learning_rate: LearningRate) -> None:
        """One variable's step: x <- x - lr * v. 16-bit variables are computed in float32 and rounded once."""
        vote = gradient if self._given_votes else self._sign(gradient, variable)
        wide = tf.float64 if variable.dtype == tf.float64 else tf.float32
        rate, vote = tf.cast(learning_rate, wide), tf.cast(vote, wide)
        if variable.dtype == wide:
            # One pass over memory. lr * v is exact, so it does not matter whether a kernel rounds it.
            tf.raw_ops.ResourceApplyGradientDescent(var=_handle(variable), alpha=rate, delta=vote)
        else:
            self.assign(variable, tf.cast(variable, wide) - rate * vote)

    def _sign(self, gradient: Any, variable: Any) -> Any:
        return signs([_dense(gradient)])[0]


@keras.saving.register_keras_serializable(package="horovod_sign")
class SignSGD(SignOptimizer):
    """signSGD: x <- x - lr * (sign(g) + weight_decay * x).

    Inside `DistributedOptimizer`, sign(g) is the majority vote of all ranks. Zeros of either sign and NaN are 0: that
    coordinate does not move (but decays).

    Args:
        learning_rate: a float, a schedule, or a callable: how far each coordinate moves in a step; typically a tenth to
            a thirtieth of what SGD takes. Votes do not grow with the ranks: do not multiply it by `hvd.size()`.
        weight_decay: decoupled; see `exclude_from_weight_decay`.
        name: of the optimizer.
        **kwargs: Keras's `use_ema`, `gradient_accumulation_steps`, `loss_scale_factor` and so on, but no clipping.

    Raises:
        ValueError: clipping; a negative learning rate or weight decay.

    Reference: Bernstein et al. 2018, arXiv 1802.04434, Algorithm 1.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        weight_decay: float | None = None,
        name: str = "sign_sgd",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, name, **kwargs)

    @property
    def rule(self) -> rules.Rule:
        return rules.signsgd()


@keras.saving.register_keras_serializable(package="horovod_sign")
class Signum(SignOptimizer):
    """Signum: m <- momentum * m + (1 - momentum) * g, then x <- x - lr * (sign(m) + weight_decay * x).

    Inside `DistributedOptimizer`, each worker keeps its own m of its own gradients, and sign(m) is the majority vote of
    all ranks. m is float32 whatever the dtype of the variable. There is no bias correction. Coordinates of g that are
    not finite do not enter m.

    Args:
        learning_rate, weight_decay, name, **kwargs: as for `SignSGD`.
        momentum: in [0, 1).
        warmup: vote on g instead of m for the first C(momentum) steps (Theorem 3: 54 steps for 0.9).

    Raises:
        ValueError: as `SignSGD`; momentum is outside [0, 1).

    Reference: Bernstein et al. 2018, arXiv 1802.04434, Algorithm 2.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        momentum: float = 0.9,
        weight_decay: float | None = None,
        warmup: bool = False,
        name: str = "signum",
        **kwargs: Any,
    ) -> None:
        rules.signum(momentum, warmup)  # raises if momentum is not possible
        super().__init__(learning_rate, weight_decay, name, **kwargs)
        self.momentum, self.warmup = momentum, warmup

    @property
    def rule(self) -> rules.Rule:
        return rules.signum(self.momentum, self.warmup)

    def build(self, variables: list[Any]) -> None:
        if self.built:
            return
        super().build(variables)
        # Named as Keras names slots, by the whole path: the legacy .h5 format takes no two of one name.
        names = [f"{getattr(v, 'path', v.name).replace('/', '_').replace(':', '_')}_momentum" for v in variables]
        self._momenta = [
            self.add_variable(v.shape, initializer="zeros", dtype="float32", name=name)
            for v, name in zip(variables, names, strict=True)
        ]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "momentum": self.momentum, "warmup": self.warmup}

    def momentum_of(self, variables: list[Any]) -> Momentum:
        """The momenta of `variables`, and whether this step still votes on gradients."""
        slots = [self._momenta[self._get_variable_index(v)].value for v in variables]
        return Momentum(slots, tf.convert_to_tensor(self.iterations < self.rule.warmup_steps))

    def _sign(self, gradient: Any, variable: Any) -> Any:
        (slot,), on_gradient = self.momentum_of([variable])
        when = (on_gradient, tf.constant(False), tf.constant(0, tf.uint32))
        (m,), (vote,) = momentum_signs(self.rule)([_dense(gradient)], [slot.read_value()], *when)
        slot.assign(m)
        return vote


def _handle(variable: Any) -> Any:
    return (variable if isinstance(variable, tf.Variable) else variable.value).handle


def _dense(gradient: Any) -> Any:
    return tf.convert_to_tensor(gradient)
