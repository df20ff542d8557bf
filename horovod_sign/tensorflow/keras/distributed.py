"""`DistributedOptimizer`: any Keras 3 optimizer, stepping by the majority vote of all ranks.

Horovod 0.28's own wrapper reduces nothing with Keras 3 and raises nothing. This one overrides the public `apply`.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import horovod.tensorflow as hvd
import keras
import tensorflow as tf

from horovod_sign.graphs.ballots import all_finite
from horovod_sign.graphs.packing import Coordinates, States
from horovod_sign.graphs.places import host
from horovod_sign.keywords import without_horovods_default
from horovod_sign.options import bucket_bytes, check_voting
from horovod_sign.rules import Rule, choose_rule
from horovod_sign.statistics import VoteStatistics
from horovod_sign.tensorflow.checks import check_arguments
from horovod_sign.tensorflow.compression import SignCompressor
from horovod_sign.tensorflow.election import Election
from horovod_sign.tensorflow.keras.optimizers import SignOptimizer
from horovod_sign.tensorflow.memory import OwnStates, Sums, flat
from horovod_sign.tensorflow.scales import follow, speaking

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from horovod_sign.keywords import HorovodKeywords

_SCALED_OUTSIDE = (
    "LossScaleOptimizer around a distributed optimizer would leave ranks waiting for each other when one of them "
    "overflows: use hvs.DistributedOptimizer(LossScaleOptimizer(optimizer)), also for a model of policy mixed_float16, "
    "which puts a LossScaleOptimizer around any other optimizer"
)

_NO_LOCAL_VARIABLES = (
    "votes are on all variables that a distributed optimizer is given: step those that each rank has for itself by an "
    "optimizer of their own, which is not distributed"
)

_UNKNOWN = (
    "{} is not among the variables that the optimizer was built for: when a model gets new layers, or layers are "
    "unfrozen that were frozen so far, compile it with a new optimizer, on all ranks"
)


def DistributedOptimizer(
    optimizer: keras.optimizers.Optimizer,
    name: str | None = None,
    compression: SignCompressor | None = None,
    sparse_as_dense: bool = False,
    backward_passes_per_step: int = 1,
    process_set: hvd.ProcessSet = hvd.global_process_set,
    abstain: bool = True,
    transport: str = "auto",
    bucket_cap_mb: float | None = None,
    hierarchical: bool = False,
    **unsupported: "Unpack[HorovodKeywords]",
) -> keras.optimizers.Optimizer:
    """Makes a Keras 3 optimizer step by majority vote: in `model.fit`, or by `optimizer.apply` in a loop of one's own.

    Each worker votes one bit a coordinate: the sign of its gradient (signSGD), of its own momentum (Signum), or of what
    another `hvs.Rule` says; a vote is sign(sum over ranks of the signs) (Bernstein et al. 2018, arXiv 1802.04434,
    Algorithms 1 to 3). Around a `SignOptimizer` (`SignSGD`, `Signum`, `Lion`) the step is its own, by the vote; around
    any other optimizer the votes (-1, 0, +1) are its gradients.

    Wrap `LossScaleOptimizer` from outside. A rank whose gradients overflow then abstains in that step and lowers its
    own scale, which need not be that of the others; where all overflow, the step is left out. With gradient
    accumulation a vote is on the mean gradient, once per applied step.

    Args:
        optimizer: not wrapped yet. It keeps its state, and itself becomes distributed: the returned object is the same.
        name: renames the optimizer.
        compression: `Compression.signsgd()`, `signum()`, `lion()` or `of(rule)`. Default, also under Horovod's name for
            it, `Compression.none`: what a `SignOptimizer` (`SignSGD`, `Signum`, `Lion`) says itself; around any other
            optimizer, signsgd. There is no way not to vote.
        sparse_as_dense: has no effect: sparse gradients (`tf.IndexedSlices`) are always voted on as dense ones.
        backward_passes_per_step: the same as Keras's `gradient_accumulation_steps`, and sets it.
        process_set: Horovod's, of the ranks that vote.
        abstain: zeros, NaN and ties are 0 (True), or +1 (False).
        transport: "exchange", "counts", or "auto": what costs less for so many coordinates and ranks by
            `horovod_sign.voting.choice`.
        bucket_cap_mb: megabytes (10^6 bytes) of gradients in one vote. Default: 2^24 coordinates.
        hierarchical: each node has one vote, on the mean over its ranks of their gradients, taken in float32 (float64
            for float64) by Horovod within the node: sign(sum over nodes k of sign(v_k)). The ranks of a node share
            memory, as MPI sees it; nodes may have different numbers of ranks, and still have one vote each. A rank's
            missing gradients count as zeros in the mean, and a NaN makes its whole node abstain there. Needs
            `hvd.init(process_sets=hvs.node_process_sets())`.
        unsupported: Horovod's other keywords, if they ask for nothing that a vote cannot have: op=Average or op=Sum,
            which a vote does not tell apart, devices, and groups and the like as they are by default.

    Returns:
        `optimizer`, now of a subclass of its class that has the same name and saves and loads as that class. A variable
        without a gradient on this rank abstains and steps by the others' votes; one that in the first step has none on
        any rank is left out, as by Keras. `optimizer.vote_statistics()` says what happened in the latest vote on this
        rank (`VoteStatistics`; see also `callbacks.VoteStatisticsCallback`), `optimizer.bytes_sent` what it sent.

    Raises:
        TypeError: an argument of Horovod's that a vote cannot have (op=Adasum and the like; groups; ...); not a
            Keras 3 optimizer.
        ValueError: Horovod not initialised; an optimizer that is already wrapped; bad options. In the first step, on
            all ranks: the ranks' variables differ.
    """
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(f"optimizer must be a Keras 3 optimizer, got {_kind(optimizer)}")
    compression = without_horovods_default(compression, hvd.Compression)
    check_arguments("DistributedOptimizer", compression, process_set, unsupported)
    check_voting(hvd, process_set, transport, backward_passes_per_step, hierarchical)
    size = None if bucket_cap_mb is None else bucket_bytes(bucket_cap_mb)
    inner = inner_optimizer(optimizer)
    if is_distributed(optimizer) or is_distributed(inner):
        raise ValueError("the optimizer is already wrapped by hvs.DistributedOptimizer: wrap it once, from outside")
    rule = choose_rule(
        inner.rule if isinstance(inner, SignOptimizer) else None,
        None if compression is None else compression.rule,
        type(inner).__name__,
    )
    _set_accumulation(inner, backward_passes_per_step)
    if name is not None:
        optimizer.name = name
    optimizer.__class__ = _distributed_class(
        type(optimizer),  # type: ignore[arg-type]
        (rule, process_set, abstain, transport, size, bool(hierarchical)),
    )
    return optimizer


def _kind(optimizer: object) -> str:
    legacy = type(optimizer).__module__.startswith("tf_keras")
    hint = " of Keras 2 (tf_keras): unset TF_USE_LEGACY_KERAS, or take keras instead of tf.keras" if legacy else ""
    return type(optimizer).__name__ + hint


def is_distributed(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether `DistributedOptimizer` has wrapped this optimizer."""
    return hasattr(optimizer, "_horovod_sign_options")


def inner_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer that takes the step: that inside of a LossScaleOptimizer."""
    return optimizer.inner_optimizer if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) else optimizer


def election_of(optimizer: keras.optimizers.Optimizer) -> Election:
    """What a distributed optimizer votes in."""
    return step_of(optimizer).election


def step_of(optimizer: keras.optimizers.Optimizer) -> "_Step":
    """What a distributed optimizer does in its steps, and remembers between them."""
    if not is_distributed(optimizer):
        raise TypeError(f"optimizer must be made by hvs.DistributedOptimizer, got {type(optimizer).__name__}")
    if "_horovod_sign_step" not in optimizer.__dict__:
        # Past Keras's tracking: the votes' own state is each worker's and no part of a saved optimizer.
        optimizer.__dict__["_horovod_sign_step"] = _Step(optimizer, *optimizer._horovod_sign_options)
    return optimizer.__dict__["_horovod_sign_step"]


def _set_accumulation(inner: keras.optimizers.Optimizer, passes: int) -> None:
    if passes == 1:
        return
    if inner.gradient_accumulation_steps not in (None, passes):
        raise ValueError(
            f"backward_passes_per_step={passes} and gradient_accumulation_steps={inner.gradient_accumulation_steps} of "
            "the optimizer differ, but are the same thing: give one of them"
        )
    if inner.built:
        raise ValueError(
            "the optimizer already has its variables: give Keras's gradient_accumulation_steps to the optimizer "
            "instead of backward_passes_per_step to the wrapper"
        )
    inner.gradient_accumulation_steps = passes


if TYPE_CHECKING:  # what `super()` is behind these methods
    from typing import Any as _Optimizer
else:
    _Optimizer = object


class _Distributed(_Optimizer):
    """The methods of a distributed optimizer, which stand before those of its own class."""

    _horovod_sign_options: tuple

    @tf.autograph.experimental.do_not_convert
    def apply(self, grads: list, trainable_variables: Sequence[Any] | None = None) -> Any:
        return step_of(self).apply(grads, trainable_variables)

    def _apply_as_before(self, grads: list, trainable_variables: Sequence[Any] | None = None) -> Any:
        """The step of the optimizer as it was, by gradients as they are."""
        return super().apply(grads, trainable_variables)

    def vote_statistics(self) -> VoteStatistics:
        """What happened in the latest vote, seen from this rank. Waits for the step to end."""
        return election_of(self).statistics()

    @property
    def bytes_sent(self) -> int:
        """By this rank to others in the latest vote."""
        return self.vote_statistics().bytes_sent

    def register_local_var(self, var: Any) -> None:
        """Horovod's, for variables that each rank has for itself. Not possible here."""
        raise NotImplementedError(_NO_LOCAL_VARIABLES)

    def __setattr__(self, name: str, value: Any) -> None:
        # A LossScaleOptimizer takes the factor away from the optimizer that it is put around.
        if name == "loss_scale_factor" and value is None and "built" in self.__dict__:
            raise ValueError(_SCALED_OUTSIDE)
        super().__setattr__(name, value)


@functools.lru_cache(maxsize=64)  # Keras keeps each class that it knows by a name
def _distributed_class(base: Any, options: tuple) -> type:
    """A subclass of `base` that votes, with the name under which `base` is saved."""
    members = {"_horovod_sign_options": options, "__module__": base.__module__, "__doc__": base.__doc__}
    cls = type(base.__name__, (_Distributed, base), members)
    registered = keras.saving.get_registered_name(base)
    if ">" in registered:
        package, class_name = registered.split(">", 1)
        keras.saving.register_keras_serializable(package, class_name)(cls)
        keras.saving.get_custom_objects()[registered] = base
    return cls


class _Step:
    """What a distributed optimizer does in `apply`: gradients to votes, then the base class's step on the votes."""

    def __init__(
        self, optimizer: keras.optimizers.Optimizer, rule: Rule, process_set: hvd.ProcessSet, *voting: Any
    ) -> None:
        self._optimizer, self._inner = optimizer, inner_optimizer(optimizer)
        self._scaled = self._inner is not optimizer
        self._rule, self.process_set = rule, process_set
        self._options = (rule, process_set, *voting)
        self.election = Election(*self._options)
        # One for each list of variables: that changes when layers are frozen and the model is compiled anew.
        self._elections: dict[tuple, Election] = {}
        self._own_states: OwnStates | None = None
        self._sums: Sums | None = None

    def apply(self, grads: list, trainable_variables: Sequence[Any] | None) -> Any:
        grads = list(grads)
        if not grads or (trainable_variables is None and not self._optimizer.built):
            return self._optimizer._apply_as_before(grads, trainable_variables)
        variables = list(self._inner._trainable_variables if trainable_variables is None else trainable_variables)
        self._build(variables)
        coordinates = [_coordinates(v, g) for v, g in zip(variables, grads, strict=True)]
        labels = [getattr(v, "path", v.name) for v in variables]
        absent = self._prepare(grads, variables, coordinates, labels)
        grads = [self.election.dense(g, c) for g, c in zip(grads, coordinates, strict=True)]
        if not self._scaled:
            votes = self._votes(grads, variables, coordinates, labels, absent, self._inner.loss_scale_factor)
            return self._take(votes, variables)
        return self._apply_scaled(grads, variables, coordinates, labels, absent)

    def _prepare(self, grads: list, variables: list, coordinates: list[Coordinates], labels: list[str]) -> list[bool]:
        """Goes over to the election of these variables; as `Election.prepare`."""
        known = self._inner._trainable_variables_indices
        key = tuple(known.get(self._inner._var_key(v)) for v in variables)
        if key not in self._elections:
            unknown = [label for label, index in zip(labels, key, strict=True) if index is None]
            error = ValueError(_UNKNOWN.format(unknown[0])) if unknown else None
            election = Election(*self._options, instead_of=self.election) if self._elections else self.election  # type: ignore[misc]
            election.prepare(grads, coordinates, labels, error)
            self._elections[key] = election
        self.election = self._elections[key]
        return self.election.prepare(grads, coordinates, labels)

    def _apply_scaled(
        self, grads: list, variables: list, coordinates: list[Coordinates], labels: list[str], absent: list[bool]
    ) -> None:
        """Under a LossScaleOptimizer: ranks without an overflow vote, and each sees to its own scale.

        Scales need not be equal, since a vote has none. A rank that always overflows is outvoted by the others, whose
        scales stay as they are. Where all overflow, the step is left out.
        """
        optimizer = self._optimizer
        scale, present = optimizer.dynamic_scale.value.read_value(), [g for g in grads if g is not None]
        finite = all_finite(present) if present else tf.constant(True)
        self.election.scaled = True
        heard = speaking(finite, f"{self.election.name}.finite", self.process_set) > 0
        with host():
            abstaining = ~finite
        votes = self._votes(grads, variables, coordinates, labels, absent, scale, abstaining, heard)
        tf.cond(heard, lambda: self._take(votes, variables), lambda: None)
        follow(optimizer, finite, heard)

    def _votes(
        self,
        grads: list,
        variables: list,
        coordinates: list[Coordinates],
        labels: list[str],
        absent: list[bool],
        scale: Any,
        abstaining: tf.Tensor | None = None,
        heard: tf.Tensor | bool = True,
    ) -> list:
        """The votes, one per variable or None; between applied steps of an accumulation, zeros.

        Args:
            scale: of the loss; None: 1.
            abstaining: scalar bool tensor: this rank's gradients do not count; None: they do.
            heard: whether those of any rank do.
        """
        steps = self._inner.gradient_accumulation_steps
        if scale is not None and (steps or not self._rule.takes_gradient):
            grads = [None if g is None else _widen(g) / tf.cast(scale, _widen(g).dtype) for g in grads]
        if not steps:
            return self._elect(grads, variables, coordinates, labels, abstaining)
        # Of each variable of the optimizer, as in Keras: another list of variables goes on with the same sums.
        sums = self._sums
        if sums is None:
            sums = self._sums = Sums([_coordinates(v, None) for v in self._inner._trainable_variables])
        indices = self._indices(variables)
        sums.add(grads, abstaining, indices)

        def elect() -> list:
            means, silent = sums.take(steps, indices)
            votes = self._elect(means, variables, coordinates, labels, None if abstaining is None else silent)
            # The base class adds what it gets and divides it by `steps`.
            return [tf.cast(v * steps, c.dtype) for v, c in zip(votes, coordinates, strict=True) if v is not None]

        def wait() -> list:
            return [tf.zeros(c.shape, c.dtype) for c, none in zip(coordinates, absent, strict=True) if not none]

        last = ((self._inner._iterations.value + 1) % steps == 0) & heard
        votes = iter(tf.cond(last, elect, wait))
        return [None if none else next(votes) for none in absent]

    def _elect(
        self,
        grads: list,
        variables: list,
        coordinates: list[Coordinates],
        labels: list[str],
        abstaining: tf.Tensor | None,
    ) -> list:
        return self.election.vote(grads, coordinates, labels, self._states(variables), abstaining)

    def _states(self, variables: list) -> States | None:
        if self._rule.takes_gradient:
            return None
        if isinstance(self._inner, SignOptimizer):
            return self._inner.states_of(variables)
        return self._remembered().next(self._indices(variables))

    def _indices(self, variables: list) -> list[int]:
        """The places of variables among those of the optimizer."""
        return [self._inner._get_variable_index(v) for v in variables]

    def forget_sums(self) -> None:
        """Drops the gradients that are summed for a vote that is yet to come."""
        self._sums = None

    def states(self) -> tuple[list[tf.Variable], list[tf.Variable], Callable | None]:
        """This rank's own states of the rule, the counters kept beside them, and what says how many votes they have
        seen."""
        if self._rule.takes_gradient:
            return [], [], None
        if isinstance(self._inner, SignOptimizer):
            slots = self._inner.states_of(self._inner._trainable_variables).slots
            return flat(slots), [], lambda: keras.ops.convert_to_numpy(self._inner.iterations)
        own = self._remembered()
        return flat(own.slots), [own.votes], own.votes.numpy

    def _remembered(self) -> OwnStates:
        if self._own_states is None:
            shapes = [tuple(v.shape) for v in self._inner._trainable_variables]
            self._own_states = OwnStates(self._rule, shapes)
        return self._own_states

    def _take(self, votes: list, variables: list) -> Any:
        """The step on votes: the base class's, which first divides by a fixed scale, if there is one."""
        scale, step = self._inner.loss_scale_factor, self._inner.apply if self._scaled else self._inner._apply_as_before
        if scale is not None:
            votes = [None if v is None else tf.cast(v, tf.float32) * tf.cast(scale, tf.float32) for v in votes]
        with _not_reduced(self._inner):
            if not isinstance(self._inner, SignOptimizer):
                return step(votes, variables)
            with self._inner.given_votes():
                return step(votes, variables)

    def _build(self, variables: list) -> None:
        if not self._optimizer.built:
            with keras.name_scope(self._optimizer.name):
                self._optimizer.build(variables)
            self._optimizer.built = True


@contextmanager
def _not_reduced(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Inside, `optimizer.apply` leaves out the reduction among replicas of tf.distribute, of which there is one.

    It would do nothing, but register a gradient that keeps the whole graph for as long as the process.
    """
    if tf.distribute.has_strategy():
        yield
        return
    vars(optimizer)["_all_reduce_sum_gradients"] = list
    try:
        yield
    finally:
        del vars(optimizer)["_all_reduce_sum_gradients"]


def _coordinates(variable: Any, gradient: Any) -> Coordinates:
    dtype = variable.dtype if gradient is None else gradient.dtype
    return Coordinates(tuple(variable.shape), tf.as_dtype(dtype))


def _widen(gradient: Any) -> tf.Tensor:
    return gradient if gradient.dtype == tf.float64 else tf.cast(gradient, tf.float32)
