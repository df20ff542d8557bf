"""Buckets of variables: gradients to a ballot, and what was decided to votes, all in the caller's graph.

A variable starts at a 64-bit word, so padding is inside the words (sign 0, nonzero 1).
"""

import functools
import itertools
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from horovod_sign.graphs.ballots import pack_by, packer, unpacker
from horovod_sign.graphs.places import from_host, host, to_host
from horovod_sign.graphs.reports import Reports
from horovod_sign.graphs.statistics import count, count_nans
from horovod_sign.rules import Rule
from horovod_sign.voting.messages import Planes


class Coordinates(NamedTuple):
    """The shape and dtype of one variable's gradient."""

    shape: tuple[int, ...]
    dtype: tf.DType

    @property
    def count(self) -> int:  # type: ignore[override]
        return int(np.prod(self.shape, dtype=np.int64))


class States(NamedTuple):
    """What a rule reads and writes.

    Attributes:
        slots: for each voted variable, the float32 variables that are its states.
        warm: scalar bool: whether this step's votes are on the gradient (the rule's warm-up).
    """

    slots: list[list[tf.Variable]]
    warm: tf.Tensor | bool = False


class TensorBucket:
    """Variables whose ballots travel together, in one step: a `voting.reducer.Bucket`.

    Args:
        name: its number in the step.
        indices: of the variables.
        gradients: on which this rank, or its node, votes.
        abstaining: scalar bool tensor: it abstains on all coordinates; None: it does not.
        rule: what a worker votes on.
        states: of all variables, by which the rule votes; None: it votes on gradients as they are.

    Attributes:
        ballot: `Planes`, once it is packed.
    """

    packed, error = True, None

    def __init__(
        self,
        name: str,
        indices: list[int],
        gradients: list[tf.Tensor],
        abstaining: tf.Tensor | None,
        rule: Rule,
        states: States | None,
    ) -> None:
        self.name, self.indices, self.gradients, self.abstaining = name, indices, gradients, abstaining
        self._rule, self._states = rule, states
        self._sizes = [g.shape.num_elements() for g in gradients]
        self.ballot: Any = None

    @property
    def coordinates(self) -> int:
        """How many are voted on."""
        return sum(self._sizes)

    def launch(self, abstain: bool) -> None:
        """Packs the ballot."""
        hold = tf.constant(False) if self.abstaining is None else self.abstaining
        if self._states is None:
            sign, nonzero = packer(abstain)(self.gradients)
        else:
            slots = [self._states.slots[i] for i in self.indices]
            old = [[slot.read_value() for slot in each] for each in slots]
            when = tf.convert_to_tensor(self._states.warm), hold
            new, sign, nonzero = pack_by(self._rule, abstain, self.gradients, old, *when)
            for slot, value in zip(itertools.chain(*slots), itertools.chain(*new), strict=True):
                slot.assign(value)
        sign, nonzero = to_host(Planes(sign, nonzero))
        if self.abstaining is not None:
            with host():
                silent = tf.where(self.abstaining, np.uint8(0), np.uint8(255))
                nonzero = tf.fill(sign.shape, silent) if nonzero is None else tf.bitwise.bitwise_and(nonzero, silent)
        self.ballot = Planes(sign, nonzero)

    def collect(self) -> Planes:
        """The ballot."""
        return self.ballot

    def forget(self) -> None:
        """The next step has buckets of its own."""

    def votes(self, decided: Planes, abstain: bool) -> list[tf.Tensor]:
        """-1, 0 or +1 for each variable, in its gradient's shape and dtype."""
        layout = tuple((tuple(g.shape), g.dtype) for g in self.gradients)
        return unpacker(layout, abstain)(*from_host(decided if abstain else Planes(decided.sign)))

    def counts(self, decided: Planes, abstain: bool, reports: Reports, labels: list[str]) -> tf.Tensor:
        """The `Counts` of the vote, without its bytes. Gradients with NaN are told to `reports`, by their labels."""
        with host():
            counted, nans = count(self.ballot, decided, self.coordinates), tf.constant(0, tf.int64)
            if abstain:
                # NaN abstains, so that most steps need no look at the gradients to know that there is none.
                tell = functools.partial(reports.tell_nans, labels=labels, sizes=self._sizes)
                nans = count_nans(self.gradients, counted.abstained > 0, self.abstaining, tell)
            return tf.stack(counted._replace(nans=nans))

    def to_be_averaged(self) -> list[tf.Tensor]:
        """The gradients in the precision of their mean, none of an abstaining rank; and whether this is one."""
        wide = [tf.cast(g, tf.float64 if g.dtype == tf.float64 else tf.float32) for g in self.gradients]
        if self.abstaining is None:
            return wide
        return [tf.where(self.abstaining, tf.zeros_like(g), g) for g in wide] + [tf.cast(self.abstaining, tf.float32)]

    def take_means(self, means: list[tf.Tensor]) -> None:
        """Votes on the means of the node, which abstains if all of its ranks do."""
        self.gradients = [tf.cast(mean, g.dtype) for mean, g in zip(means, self.gradients, strict=False)]
        if self.abstaining is not None:
            self.abstaining = means[-1] == 1
