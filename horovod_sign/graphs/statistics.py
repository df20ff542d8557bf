"""What happened in the votes of a step, counted inside the graph: see `horovod_sign.statistics`.

Counts are popcounts of bit planes and stay in variables until somebody asks, so a training step neither leaves the
graph nor waits for them.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from horovod_sign.graphs.places import anywhere, host, on_host
from horovod_sign.graphs.programs import Compiled
from horovod_sign.graphs.reports import call_if
from horovod_sign.graphs.variables import variable
from horovod_sign.statistics import PATIENCE, VoteStatistics, summarise
from horovod_sign.voting.messages import Planes


class Counts(NamedTuple):
    """Coordinates of one vote, or of many, as this rank sees them; and bytes. Scalar int64 tensors, or numbers.

    Attributes:
        coordinates: voted on.
        abstained: this rank abstained.
        ties: the vote is 0.
        both: this rank voted and the vote is not 0.
        alike: of these, those where they are the same.
        nans: this rank abstained because of NaN.
        bytes_sent: by this rank to others.
    """

    coordinates: tf.Tensor
    abstained: tf.Tensor
    ties: tf.Tensor
    both: tf.Tensor
    alike: tf.Tensor
    nans: tf.Tensor
    bytes_sent: tf.Tensor


class Counters:
    """Counts of the latest step and of all, as variables that the graph updates. Made outside of any graph.

    Attributes:
        latest: the `Counts` of the latest step, as a vector.
    """

    def __init__(self) -> None:
        nothing = [0] * len(Counts._fields)
        with host():
            self.latest, self._total, self._steps = (variable(value, tf.int64) for value in (nothing, nothing, 0))
            self._measured, self._mean = variable(0, tf.int64), variable(0.0, tf.float64)

    @on_host
    def end_step(self, counts: tf.Tensor, tell: Callable[..., None] | None = None) -> None:
        """Takes in the `Counts` of a step, a vector.

        Args:
            tell: is called, in the graph, with in how many steps the agreement was measured, and its running mean.
        """
        self.latest.assign(counts)
        self._total.assign_add(counts)
        self._steps.assign_add(1)
        both, alike = (tf.cast(counts[Counts._fields.index(field)], tf.float64) for field in ("both", "alike"))
        # The mean over the last PATIENCE steps or so in which there was anything to agree on.
        measured = self._measured.assign_add(tf.cast(both > 0, tf.int64))
        weight = tf.cast(both > 0, tf.float64) / tf.cast(tf.clip_by_value(measured, 1, PATIENCE), tf.float64)
        mean = self._mean.assign_add((tf.math.divide_no_nan(alike, both) - self._mean) * weight)
        if tell is not None:
            tell(measured, mean)

    def forget_mean(self) -> None:
        """Starts the mean agreement anew, among other ranks."""
        self._measured.assign(0)
        self._mean.assign(0.0)

    @property
    def agreement(self) -> tuple[int, float]:
        """In how many steps the agreement was measured, and `mean_agreement`."""
        measured = int(self._measured.numpy())
        return measured, float(self._mean.numpy()) if measured else math.nan

    def totals(self) -> tuple[int, Counts]:
        """(steps, counts) so far."""
        return int(self._steps.numpy()), Counts(*self._total.numpy().tolist())

    def statistics(self, size: int, earlier: tuple[int, Counts] | None = None) -> VoteStatistics:
        """The statistics of the latest step, or those of all steps since `earlier`.

        Args:
            size: how many ranks vote.
            earlier: former `totals`. Numbers of coordinates and bytes are then sums over the steps.
        """
        steps, total = self.totals()
        if steps == 0:
            return VoteStatistics()
        if earlier is None:
            counts = Counts(*self.latest.numpy().tolist())
        else:
            counts = Counts(*(now - then for now, then in zip(total, earlier[1], strict=True)))
        mean = self.agreement[1]
        return summarise(size, step=steps, total_nans=total.nans, mean_agreement=mean, **counts._asdict())


@on_host
def count(ballot: Planes, decided: Planes, coordinates: int) -> Counts:
    """The counts of a vote on so many coordinates by its planes, padding left out; those of NaN and bytes are 0."""
    words = [None if plane is None else _as_words(plane) for plane in (*ballot, *decided)]
    return Counts(*tf.unstack(_counter(coordinates)(*words), len(Counts._fields)))


@on_host
def of_bytes(sent: Any) -> tf.Tensor:
    """The `Counts` of so many bytes alone, a vector."""
    nothing = tf.constant(0, tf.int64)
    return tf.stack([*[nothing] * (len(Counts._fields) - 1), tf.cast(sent, tf.int64)])  # the last field


@on_host
def count_nans(
    gradients: Sequence[tf.Tensor],
    suspected: tf.Tensor,
    abstaining: tf.Tensor | None = None,
    tell: Callable[..., None] | None = None,
) -> tf.Tensor:
    """How many coordinates are NaN, looked for only if `suspected`; 0 if this rank abstains as a whole.

    Args:
        gradients: tensors.
        suspected, abstaining: scalar bool tensors; None: False.
        tell: is called, in the graph, with the numbers of each gradient where not all are 0.
    """

    def look() -> tf.Tensor:
        with anywhere():
            # A sum runs at the speed of memory, and is NaN if anything in it is, or infinities of both signs are.
            suspicious = tf.reduce_any(tf.math.is_nan([tf.cast(tf.reduce_sum(g), tf.float64) for g in gradients]))
        return tf.cond(suspicious, look_closely, lambda: nothing)

    def look_closely() -> tf.Tensor:
        with anywhere():
            nans = tf.stack([_count_nans(g) for g in gradients])
        total = tf.reduce_sum(nans)
        if tell is not None:
            call_if(total > 0, lambda: tell(nans))
        return total

    nothing = tf.constant(0, tf.int64)
    return tf.cond(suspected if abstaining is None else suspected & ~abstaining, look, lambda: nothing)


def _count_nans(gradient: tf.Tensor) -> tf.Tensor:
    return tf.math.count_nonzero(tf.math.is_nan(gradient))


def _as_words(plane: tf.Tensor) -> tf.Tensor:
    return tf.bitcast(tf.reshape(plane, [-1, 8]), tf.uint64)


@functools.lru_cache(maxsize=256)
def _counter(coordinates: int) -> Compiled:
    """Compiled: a vector of `Counts` of the planes of a ballot and of the vote, as words."""

    def counts(
        sign: tf.Tensor, nonzero: tf.Tensor | None, decided_sign: tf.Tensor, decided_nonzero: tf.Tensor | None
    ) -> tf.Tensor:
        bits = 64 * sign.shape[0]
        padding = bits - coordinates
        everything = tf.fill(sign.shape, np.uint64(2**64 - 1))
        nonzero = everything if nonzero is None else nonzero
        decided_nonzero = everything if decided_nonzero is None else decided_nonzero
        both = nonzero & decided_nonzero
        alike = both & ~(sign ^ decided_sign)
        # Padding votes and agrees, unless this rank, or all of them, abstains as a whole. So these are exact.
        abstained, ties = (tf.minimum(bits - _ones(plane), coordinates) for plane in (nonzero, decided_nonzero))
        both, alike = (tf.maximum(_ones(plane) - padding, 0) for plane in (both, alike))
        zero = tf.constant(0, tf.int64)
        return tf.stack(Counts(tf.constant(coordinates, tf.int64), abstained, ties, both, alike, zero, zero))

    return Compiled(counts)


def _ones(words: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(tf.raw_ops.PopulationCount(x=words), tf.int64))
