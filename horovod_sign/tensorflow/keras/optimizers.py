"""SignSGD, Signum, Lion, and any rule as Keras 3 optimizers: of one process, or voted on in `DistributedOptimizer`.

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
from horovod_sign.graphs.ballots import signs, signs_by
from horovod_sign.graphs.packing import States

LearningRate: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule | Callable[[], float]

_CLIPPING = ("clipnorm", "clipvalue", "global_clipnorm")


@keras.saving.register_keras_serializable(package="horovod_sign")
class SignOptimizer(keras.optimizers.Optimizer):
    """x <- x - lr * (sign(v) + weight_decay * x), v by a rule: what a worker votes on.

    Inside `DistributedOptimizer`, sign(v) is the majority vote of all ranks, each of which keeps the states of the rule
    for itself. They are variables of the optimizer, float32 whatever the dtype of the variable that they are for.

    Args:
        learning_rate, weight_decay, name, **kwargs: as for `SignSGD`.
        rule: an object of a class derived from `hvs.Rule`. A saved model has the name of the class and its attributes:
            where it is loaded the class must have been imported, or be among the `custom_objects`.

    Raises:
        TypeError: `rule` is none.
        ValueError: as `SignSGD`.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        rule: rules.Rule | None = None,
        weight_decay: float | None = None,
        name: str = "sign_optimizer",
        **kwargs: Any,
    ) -> None:
        chosen = rules.check_rule(rule)
        clipping = [key for key in _CLIPPING if kwargs.pop(key, None) is not None]
        if clipping:
            raise ValueError(
                f"{type(self).__name__} has no {', '.join(clipping)}: a step is a sign, whatever the size of the "
                "gradient; leave it out"
            )
        if isinstance(learning_rate, float):
            rules.check_step(learning_rate, weight_decay or 0.0)
        super().__init__(learning_rate=learning_rate, weight_decay=weight_decay, name=name, **kwargs)
        self._given_votes, self._own_rule = False, chosen

    @property
    def rule(self) -> rules.Rule:
        """What a worker votes on."""
        return self._own_rule

    def build(self, variables: list[Any]) -> None:
        if self.built:
            return
        super().build(variables)
        # Named as Keras names slots, by the whole path: the legacy .h5 format takes no two of one name.
        paths = [getattr(v, "path", v.name).replace("/", "_").replace(":", "_") for v in variables]
        self._states = [
            [
                self.add_variable(v.shape, initializer="zeros", dtype="float32", name=f"{path}_{_keras_name(state)}")
                for v, path in zip(variables, paths, strict=True)
            ]
            for state in self.rule.states
        ]

    def states_of(self, variables: list[Any]) -> States:
        """The states of `variables`, and whether this step still votes on gradients."""
        indices = [self._get_variable_index(v) for v in variables]
        slots = [[of_all[i].value for of_all in self._states] for i in indices]
        return States(slots, tf.convert_to_tensor(self.iterations < self.rule.warmup_steps))

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        if type(self).__init__ is SignOptimizer.__init__:
            config["rule"] = {
                "class_name": type(self._own_rule).__name__,
                "config": _in_json(self._own_rule.get_config()),
            }
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "SignOptimizer":
        if isinstance(config.get("rule"), dict):
            config = {**config, "rule": _loaded(config["rule"], custom_objects)}
        return super().from_config(config, custom_objects)

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
        if self.rule.takes_gradient:
            return signs([_dense(gradient)])[0]
        (slots,), warm = self.states_of([variable])
        (new,), (vote,) = signs_by(self.rule, [_dense(gradient)], [[s.read_value() for s in slots]], warm)
        for slot, value in zip(slots, new, strict=True):
            slot.assign(value)
        return vote


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
        super().__init__(learning_rate, rules.signsgd(), weight_decay, name, **kwargs)


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
        super().__init__(learning_rate, rules.signum(momentum, warmup), weight_decay, name, **kwargs)
        self.momentum, self.warmup = momentum, warmup

    @property
    def rule(self) -> rules.Rule:
        return rules.signum(self.momentum, self.warmup)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "momentum": self.momentum, "warmup": self.warmup}


@keras.saving.register_keras_serializable(package="horovod_sign")
class Lion(SignOptimizer):
    """Lion: x <- x - lr * (sign(beta_1 * m + (1 - beta_1) * g) + weight_decay * x), then
    m <- beta_2 * m + (1 - beta_2) * g.

    Inside `DistributedOptimizer` it is Distributed Lion with majority vote: each worker keeps its own m of its own
    gradients, and the sign is the majority vote of all ranks. m is float32 whatever the dtype of the variable.
    Coordinates of g that are not finite do not enter m.

    Args:
        learning_rate, weight_decay, name, **kwargs: as for `SignSGD`.
        beta_1, beta_2: in [0, 1).

    Raises:
        ValueError: as `SignSGD`; a beta is outside [0, 1).

    Reference: Liu et al. 2024, arXiv 2404.00438, Algorithm 1; Chen et al. 2023, arXiv 2302.06675, Algorithm 2.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        weight_decay: float | None = None,
        name: str = "lion",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, rules.lion(beta_1, beta_2), weight_decay, name, **kwargs)
        self.beta_1, self.beta_2 = beta_1, beta_2

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "beta_1": self.beta_1, "beta_2": self.beta_2}


def _handle(variable: Any) -> Any:
    return (variable if isinstance(variable, tf.Variable) else variable.value).handle


def _loaded(saved: dict[str, Any], custom_objects: dict[str, Any] | None) -> rules.Rule:
    """A rule from the configuration of an optimizer. Keras by itself would have each class of a user's registered."""
    known = {cls.__name__: cls for cls in rules.classes()} | (custom_objects or {})
    name = saved["class_name"]
    if name not in known:
        raise ValueError(f"the optimizer votes by the rule {name}, which is not known here: import its class first")
    return known[name].from_config(_from_json(saved["config"], custom_objects))


def _in_json(value: Any) -> Any:
    """An attribute of a rule for a file: JSON, and so Keras, makes lists of tuples."""
    if isinstance(value, dict):
        return {name: _in_json(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        items = [_in_json(each) for each in value]
        return items if isinstance(value, list) else {"tuple": items}
    return keras.saving.serialize_keras_object(value)


def _from_json(value: Any, custom_objects: dict[str, Any] | None) -> Any:
    if isinstance(value, list):
        return [_from_json(each, custom_objects) for each in value]
    if isinstance(value, dict) and value.keys() == {"tuple"}:
        return tuple(_from_json(value["tuple"], custom_objects))
    if isinstance(value, dict) and "class_name" not in value:
        return {name: _from_json(each, custom_objects) for name, each in value.items()}
    return keras.saving.deserialize_keras_object(value, custom_objects)


def _keras_name(state: str) -> str:
    return state.removesuffix("_buffer")  # a momentum, as in Keras's SGD


def _dense(gradient: Any) -> Any:
    return tf.convert_to_tensor(gradient)
