"""What a worker remembers between steps for the variables of an election: states of rules, summed gradients, counters.

State is made once, outside of any graph, however often and wherever the step is traced.
"""

from collections.abc import Sequence

import tensorflow as tf

from horovod_sign.graphs.packing import Coordinates, States
from horovod_sign.graphs.variables import variable
from horovod_sign.rules import Rule


class OwnStates:
    """What a rule keeps for variables whose optimizer keeps nothing of it.

    Attributes:
        slots: for each shape, a float32 variable for each state.
        votes: how many votes they have seen.
    """

    def __init__(self, rule: Rule, shapes: list[tuple[int, ...]]) -> None:
        self._warmup_steps = rule.warmup_steps
        with tf.init_scope():
            self.slots = [[variable(tf.zeros(shape), name=f"sign_{name}") for name in rule.states] for shape in shapes]
        self.votes = variable(0, tf.int64, "sign_votes")

    def of_others(self, rule: Rule, shapes: list[tuple[int, ...]], places: list[int | None]) -> "OwnStates":
        """The states of another list of variables.

        Args:
            rule: what they are for.
            shapes: the variables' shapes.
            places: for each variable its place among these, whose states it shares; None: it is new.
        """
        missing = iter(OwnStates(rule, [s for s, place in zip(shapes, places, strict=True) if place is None]).slots)
        others = OwnStates(rule, [])
        others.slots = [next(missing) if place is None else self.slots[place] for place in places]
        others.votes = self.votes
        return others

    def next(self, indices: Sequence[int]) -> States:
        """The states of these variables for the next vote. Counts it."""
        before = self.votes.assign_add(1) - 1
        return States([self.slots[i] for i in indices], before < self._warmup_steps)


def flat(slots: list[list]) -> list:
    """The variables in one list."""
    return [slot for each in slots for slot in each]


class Sums:
    """Gradients summed over several backward passes; a variable without a gradient adds nothing."""

    def __init__(self, variables: list[Coordinates]) -> None:
        self._variables = variables
        wide = [tf.float64 if v.dtype == tf.float64 else tf.float32 for v in variables]
        with tf.init_scope():
            self._sums = [variable(tf.zeros(v.shape, w)) for v, w in zip(variables, wide, strict=True)]
        self._heard = variable(0, tf.int32)

    def add(self, gradients: list, abstaining: tf.Tensor | None = None, indices: Sequence[int] | None = None) -> None:
        """Adds one pass's gradients.

        Args:
            gradients: of the variables of these indices; None: of all.
            abstaining: scalar bool tensor: this pass adds nothing.
        """
        heard = True if abstaining is None else ~abstaining
        for total, gradient in zip(self._of(indices), gradients, strict=True):
            if gradient is not None:
                wide = tf.cast(gradient, total.dtype)
                total.assign_add(wide if abstaining is None else tf.where(heard, wide, tf.zeros_like(wide)))
        self._heard.assign_add(tf.cast(heard, tf.int32))

    def take(self, passes: int, indices: Sequence[int] | None = None) -> tuple[list[tf.Tensor], tf.Tensor]:
        """The means over passes, and whether no pass was heard; starts anew, also those of other indices."""
        means = [total.read_value() / passes for total in self._of(indices)]
        silent = self._heard.read_value() == 0
        for total in self._sums:
            total.assign(tf.zeros_like(total))
        self._heard.assign(0)
        return means, silent

    def _of(self, indices: Sequence[int] | None) -> list:
        return self._sums if indices is None else [self._sums[i] for i in indices]
