"""What a worker votes on: a function of its gradient and of states of its own. The seam for another method.

    v, states = ballot(gradient, states)        the worker votes sign(v)

`signsgd`, `signum` and `lion` are an `Interpolation`, which the kernels compute and pack in one pass over memory. Any
other rule is a class derived from `Rule`, of a user's too, which computes in the operations of its framework:

    class Muon(hvs.Rule):
        states = ("momentum",)

        def ballot(self, gradient, momentum):
            momentum = 0.95 * momentum + gradient
            return orthogonalised(momentum), momentum

States are float32, of the shape of the parameter, zero at the beginning, and each worker's own: never sent with a vote.

A gradient coordinate that is not finite never enters a state, which keeps its value there; for that step the worker
votes the sign of g itself, so an infinity has its sign and a NaN abstains.
"""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


class Rule:
    """What a worker votes on. Derive a class from it, and give it to `SignOptimizer` or to `Compression.of`.

    Two rules are the same if they are of one class and have the same attributes. All ranks must have the same one,
    which they compare in words (`repr`). A rule remembers nothing by itself: what it must know later is a state.

    Attributes:
        states: names of what it keeps for each parameter: identifiers, and not "step".
        warmup_steps: for so many steps votes are on the gradient, while states fill.
    """

    states: tuple[str, ...] = ()
    warmup_steps: int = 0

    def ballot(self, gradient: Any, *states: Any) -> Any:
        """What this worker votes on, and what becomes of its states.

        Called for one parameter, and outside of any recording of gradients. What it is given may be changed in place.

        Args:
            gradient: float32, of the shape of the parameter, finite: 0 where the gradient is not.
            states: in the order of their names; likewise.

        Returns:
            (v, *new states), or v alone if there are none: tensors of the same shape. The worker votes sign(v), v of
            any floating dtype, and abstains where v is 0 or NaN. Where the gradient, or a new state, is not finite, the
            state stays as it was; and where the gradient is not, the worker votes sign(gradient) instead.
        """
        raise NotImplementedError(f"{type(self).__name__} must have a method ballot(self, gradient, *states)")

    @property
    def takes_gradient(self) -> bool:
        """Whether votes are on gradients as they are, so that there is nothing to compute."""
        return False

    @property
    def betas(self) -> tuple[float, float | None] | None:
        """The two betas of an `Interpolation`, by which kernels compute it; None: only `ballot` knows what this is."""
        return None

    def get_config(self) -> dict:
        """Its attributes, for models of Keras that are saved; `from_config` makes the same rule of them."""
        return dict(vars(self))

    @classmethod
    def from_config(cls, config: dict) -> "Rule":
        """A rule with these attributes."""
        rule = cls.__new__(cls)
        vars(rule).update(config)
        return rule

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in sorted(vars(self).items()))})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and in_words(self) == in_words(other)

    def __hash__(self) -> int:
        return hash(in_words(self))


@dataclass(frozen=True)
class Interpolation(Rule):
    """Votes on a point between the momentum and the gradient, and keeps another.

        v = beta_vote  * m + (1 - beta_vote)  * g
        m = beta_state * m + (1 - beta_state) * g

    Attributes:
        beta_vote: weight of m in the vote, in [0, 1).
        beta_state: weight of the old m in the new one, in [0, 1); None: no momentum is kept, votes are on g.
        warmup_steps: for so many steps votes are on g while m fills.
    """

    beta_vote: float = 0.0
    beta_state: float | None = None
    warmup_steps: int = 0

    @property
    def states(self) -> tuple[str, ...]:  # type: ignore[override]
        """torch's name for a momentum."""
        return () if self.beta_state is None else ("momentum_buffer",)

    def ballot(self, gradient: Any, *states: Any) -> Any:
        """The equations above. The kernels compute the same, and round each product and each sum by itself."""
        if self.beta_state is None:
            return gradient
        betas = (self.beta_vote, self.beta_state)  # also where a class derived from this one calls super().ballot
        vote, state = (beta * states[0] + (1 - beta) * gradient for beta in betas)
        return vote, state

    @property
    def takes_gradient(self) -> bool:
        return self.betas is not None and not self.states

    @property
    def betas(self) -> tuple[float, float | None] | None:
        if type(self).ballot is not Interpolation.ballot:  # a class derived from this one has another
            return None
        return self.beta_vote, self.beta_state


def signsgd() -> Rule:
    """signSGD: vote on the gradient (Bernstein et al. 2018, arXiv 1802.04434, Algorithm 1)."""
    return Interpolation()


def signum(momentum: float = 0.9, warmup: bool = False) -> Rule:
    """Signum: vote on the momentum m = beta*m + (1-beta)*g, without bias correction (ibid., Algorithm 2).

    Args:
        momentum: beta, in [0, 1).
        warmup: vote on g for the first C(beta) steps while m fills, as Theorem 3 assumes.

    Raises:
        ValueError: momentum is outside [0, 1).
    """
    _check_beta("momentum", momentum)
    return Interpolation(momentum, momentum, warmup_length(float(momentum)) if warmup else 0)


def lion(beta_1: float = 0.9, beta_2: float = 0.99) -> Rule:
    """Distributed Lion: vote on beta_1*m + (1-beta_1)*g, then m = beta_2*m + (1-beta_2)*g.

    (Liu et al. 2024, arXiv 2404.00438, Algorithm 1 with majority vote; Lion: Chen et al. 2023, arXiv 2302.06675.)

    Raises:
        ValueError: a beta is outside [0, 1).
    """
    _check_beta("beta_1", beta_1)
    _check_beta("beta_2", beta_2)
    return Interpolation(beta_1, beta_2)


def in_words(rule: Rule) -> str:
    """A rule in one line, the same on all ranks that have the same one: no addresses in memory, as functions have."""
    words = re.sub(r"\s+", " ", re.sub(r" at 0x[0-9a-fA-F]+", "", repr(rule)))
    return f"{words} of {', '.join(rule.states)}" if rule.states else words


def _check_beta(name: str, beta: float) -> None:
    if not 0.0 <= beta < 1.0:
        raise ValueError(f"{name} must be at least 0 and less than 1, got {beta!r}")


@functools.lru_cache(maxsize=256)  # asked for whenever gradients are packed
def warmup_length(momentum: float) -> int:
    """C(beta), steps: the least C with C/2 beta^C <= 1/((1-beta^2)(C+1)) and beta^(C+1) <= 1/2 (ibid., Theorem 3).

    C(0.5) = 1, C(0.9) = 54, C(0.99) = 894.
    """
    c = 1
    while c / 2 * momentum**c > 1 / ((1 - momentum**2) * (c + 1)) or momentum ** (c + 1) > 0.5:
        c += 1
    return c


def classes(base: type[Rule] = Rule) -> Iterator[type[Rule]]:
    """All classes of rules that there are by now."""
    for cls in base.__subclasses__():
        yield cls
        yield from classes(cls)


def check_rule(rule: Any) -> Rule:
    """`rule`, if it is one.

    Raises:
        TypeError: it is not, or is a class and no object.
        ValueError: names of states that cannot be.
    """
    if isinstance(rule, type) and issubclass(rule, Rule):
        raise TypeError(f"rule must be an object: call the class, {rule.__name__}(...)")
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be an object of a class derived from hvs.Rule, got {rule!r}")
    if type(rule).__hash__ is None:
        raise TypeError(f"{type(rule).__name__} is a dataclass that can change: make it by @dataclass(frozen=True)")
    names = rule.states
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise TypeError(f'states of {type(rule).__name__} must be a tuple of names, as ("momentum",), got {names!r}')
    if len(set(names)) < len(names) or "step" in names:
        raise ValueError(
            f'states of {type(rule).__name__} must have different names, none of which is "step", got {names!r}'
        )
    return rule


def checked_ballot(rule: Rule, gradient: Any, states: Sequence, tensor: Callable, kind: Callable) -> tuple:
    """What `rule.ballot` returns, as a tuple of tensors.

    Args:
        rule: a user's, perhaps.
        gradient, states: for it.
        tensor: makes a tensor of the framework of what it returns, or raises.
        kind: (shape, dtype in words, whether that is a floating dtype) of a tensor.

    Raises:
        RuntimeError: the rule raises an error, or returns what it must not. One sentence.
    """
    name, wanted, count = type(rule).__name__, kind(gradient)[0], 1 + len(rule.states)
    try:
        returned = rule.ballot(gradient, *states)
    except Exception as error:
        raise RuntimeError(f"{name}.ballot raised {type(error).__name__}: {_first_line(error)}") from error
    what = "v alone" if count == 1 else f"(v, {', '.join(f'new {state}' for state in rule.states)})"
    results = tuple(returned) if isinstance(returned, tuple | list) else (returned,)
    if len(results) != count:
        raise RuntimeError(f"{name}.ballot must return {what}, but returned {len(results)} of {count} values")
    try:
        results = tuple(map(tensor, results))
    except Exception as error:
        raise RuntimeError(f"{name}.ballot must return {what}, tensors, but {_first_line(error)}") from error
    for value, of in zip(map(kind, results), ("v", *rule.states), strict=True):
        shape, dtype, floating = value
        if shape != wanted or not floating:
            raise RuntimeError(
                f"{name}.ballot must return tensors of floating point and of the shape of the gradient, {wanted}, but "
                f"{of} is {dtype} of shape {shape}"
            )
    return results


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def check_step(lr: float, weight_decay: float) -> None:
    """Raises ValueError unless both are numbers that are at least 0 (NaN is not)."""
    if not lr >= 0.0:
        raise ValueError(f"lr must be at least 0, got {lr!r}")
    if not weight_decay >= 0.0:
        raise ValueError(f"weight_decay must be at least 0, got {weight_decay!r}")


def choose_rule(own: Rule | None, compression: Rule | None, optimizer: str) -> Rule:
    """The rule of a DistributedOptimizer around an optimizer.

    Args:
        own: the rule of the optimizer itself if it is a SignOptimizer, else None.
        compression: the rule of the `compression` argument, or None.
        optimizer: the optimizer's class name, for the error.

    Returns:
        The optimizer's own rule, else that of `compression`, else signSGD: the votes are the optimizer's gradients.

    Raises:
        ValueError: both have one.
    """
    if own is not None and compression is not None:
        raise ValueError(
            f"{optimizer} already says what each worker votes on: leave out compression=, or wrap another optimizer "
            "(for example SGD), whose gradients the votes then are"
        )
    chosen = compression if own is None else own
    return signsgd() if chosen is None else chosen


def warming_up(rule: Rule, state: dict) -> bool:
    """Counts a step in `state` and says whether its votes are on the gradient."""
    if not rule.warmup_steps:
        return False
    state["step"] = state.get("step", 0) + 1
    return state["step"] <= rule.warmup_steps
