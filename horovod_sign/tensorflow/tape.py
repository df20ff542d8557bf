"""`DistributedGradientTape`: a gradient tape whose gradients are the majority vote of all ranks."""

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_sign.graphs.packing import Coordinates
from horovod_sign.graphs.variables import underlying, variable
from horovod_sign.keywords import without_horovods_default
from horovod_sign.options import bucket_bytes, check_voting
from horovod_sign.rules import Rule
from horovod_sign.tensorflow import forgotten, scaled_losses
from horovod_sign.tensorflow.checks import check_arguments
from horovod_sign.tensorflow.compression import Compression, SignCompressor
from horovod_sign.tensorflow.election import Election
from horovod_sign.tensorflow.memory import OwnStates, Sums
from horovod_sign.tensorflow.scales import Scale

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from horovod_sign.keywords import HorovodKeywords

_DEFAULT = Compression.signsgd()
scaled_losses.watch()


def DistributedGradientTape(
    gradtape: tf.GradientTape,
    compression: SignCompressor | None = None,
    sparse_as_dense: bool = False,
    process_set: hvd.ProcessSet = hvd.global_process_set,
    abstain: bool = True,
    transport: str = "auto",
    backward_passes_per_step: int = 1,
    bucket_cap_mb: float | None = None,
    hierarchical: bool = False,
    **unsupported: "Unpack[HorovodKeywords]",
) -> tf.GradientTape:
    """Wraps a gradient tape so that its gradients are the votes of all ranks: -1, 0 or +1, in the gradient's dtype.

        vote = sign(sum over ranks of sign(v)),    v the gradient (signSGD) or each worker's momentum of it (Signum)

    (Bernstein et al. 2018, arXiv 1802.04434, Algorithms 1 to 3). Works eagerly and in `tf.function` (not in one with
    jit_compile=True, where Horovod's ops cannot run). A momentum belongs to a variable and a `compression` object: make
    the compression once, the tape at every step.

    Args:
        gradtape: the tape, of which `gradient` is called once for all variables of a step.
        compression: `Compression.signsgd()` (default, also under Horovod's name for it, `Compression.none`),
            `signum()`, `lion()` or `of(rule)`.
        sparse_as_dense: has no effect: sparse gradients (`tf.IndexedSlices`) are always voted on, and returned, dense.
        process_set: Horovod's, of the ranks that vote.
        abstain: zeros, NaN and ties are 0 (True) or +1 (False).
        transport: "exchange", "counts", or "auto": what costs less for so many coordinates and ranks by
            `horovod_sign.voting.choice`.
        backward_passes_per_step: votes are on the mean gradient of so many calls of `gradient`; the calls between
            return zeros.
        bucket_cap_mb: megabytes (10^6 bytes) of gradients in one vote. Default: 2^24 coordinates.
        hierarchical: each node has one vote, on the mean over its ranks of their gradients, taken in float32 (float64
            for float64) by Horovod within the node: sign(sum over nodes k of sign(v_k)). The ranks of a node share
            memory, as MPI sees it; nodes may have different numbers of ranks, and still have one vote each. A rank's
            missing gradients count as zeros in the mean, and a NaN makes its whole node abstain there. Needs
            `hvd.init(process_sets=hvs.node_process_sets())`.
        unsupported: Horovod's other keywords, if they ask for nothing that a vote cannot have: op=Average or op=Sum,
            which a vote does not tell apart, devices, and groups and the like as they are by default.

    Returns:
        A tape. Its `gradient` returns the structure of `sources`. A source without a gradient on this rank (None)
        abstains, and gets the others' vote; it stays None if in the first step it was None on all ranks.
        `compression.vote_statistics()` says what happened in the latest vote. If a Keras optimizer has scaled the loss
        (`optimizer.scale_loss`: LossScaleOptimizer, loss_scale_factor), votes are in float32, multiplied by the scale
        that it divides by: give them to that optimizer. A rank that overflows abstains, and lowers its own scale.

    Raises:
        TypeError: an argument of Horovod's that a vote cannot have (op=Adasum and the like; groups; ...).
        ValueError: Horovod not initialised, bad options; in `gradient`: the ranks' variables differ.
    """
    compression = without_horovods_default(compression, hvd.Compression)
    check_arguments("DistributedGradientTape", compression, process_set, unsupported)
    check_voting(hvd, process_set, transport, backward_passes_per_step, hierarchical)
    size = None if bucket_cap_mb is None else bucket_bytes(bucket_cap_mb)
    if isinstance(gradtape, VotingTape):
        raise ValueError("the tape is already wrapped by hvs.DistributedGradientTape: wrap it once")
    if "_allreduce_grads" in vars(gradtape):
        raise ValueError(
            "the tape is already wrapped by Horovod's DistributedGradientTape: wrap the plain tape instead"
        )
    scaled_losses.watch()  # should Keras have been loaded later
    options = _Options(backward_passes_per_step, process_set, abstain, transport, size, bool(hierarchical))
    return VotingTape(gradtape, compression or _DEFAULT, options)


class VotingTape(tf.GradientTape):
    """A tape whose gradients are votes; everything else is the wrapped tape's."""

    def __init__(self, tape: tf.GradientTape, compression: SignCompressor, options: "_Options") -> None:
        super().__init__()
        self._wrapped, self._compression, self._options = tape, compression, options

    @tf.autograph.experimental.do_not_convert
    def gradient(
        self,
        target: Any,
        sources: Any,
        output_gradients: Any = None,
        unconnected_gradients: tf.UnconnectedGradients = tf.UnconnectedGradients.NONE,
    ) -> Any:
        """The votes on the gradients of `target`, in the structure of `sources`."""
        gradients = self._wrapped.gradient(target, sources, output_gradients, unconnected_gradients)
        # None gradients are leaves too; IndexedSlices must stay whole.
        flat = tf.nest.flatten(gradients, expand_composites=False)
        variables = [underlying(source) for source in tf.nest.flatten(sources, expand_composites=False)]
        scaler = scaled_losses.optimizer_of(target, variables)
        votes = _remembered(self._compression, variables, flat, self._options).vote(flat, scaler)
        return tf.nest.pack_sequence_as(sources, votes)

    def register_local_source(self, source: tf.Variable) -> None:
        """Horovod's, for variables that each rank has for itself. Not possible here."""
        raise NotImplementedError(
            "hvs.DistributedGradientTape has no local sources: votes are on all sources that `gradient` is given; give "
            "it those that all ranks have, and ask the plain tape, made with persistent=True, for all others"
        )

    def __enter__(self) -> "VotingTape":
        self._wrapped.__enter__()
        return self

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        self._wrapped.__exit__(kind, value, traceback)

    def watch(self, tensor: Any) -> None:
        self._wrapped.watch(tensor)

    def stop_recording(self) -> Any:
        return self._wrapped.stop_recording()

    def reset(self) -> None:
        self._wrapped.reset()

    def watched_variables(self) -> Any:
        return self._wrapped.watched_variables()

    def jacobian(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped tape's: not voted on."""
        return self._wrapped.jacobian(*args, **kwargs)

    def batch_jacobian(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped tape's: not voted on."""
        return self._wrapped.batch_jacobian(*args, **kwargs)


class _Options(tuple):
    """(passes, *what an `Election` is made of); process sets are told apart by identity."""

    __slots__ = ()

    def __new__(cls, *values: Any) -> "_Options":
        return super().__new__(cls, values)


class _TapeMemory:
    """What a compression remembers for one list of variables.

    Args:
        rule: what each worker votes on.
        coordinates, labels: of the variables.
        places: for each variable its place in the list of `former`, or None.
        former: the memory of the latest list that has some of these variables (layers have been frozen, say): they keep
            their momenta.
        passes, voting: the tape's options; of the latter, what an `Election` is made of.
    """

    def __init__(
        self,
        rule: Rule,
        coordinates: list[Coordinates],
        labels: list[str],
        places: list[int | None],
        former: Any,
        passes: int,
        *voting: Any,
    ) -> None:
        self._coordinates, self._labels, self._passes = coordinates, labels, passes
        self._process_set = voting[0]
        self.election = Election(rule, *voting, instead_of=former and former.election)  # type: ignore[misc]
        self.states = None
        if not rule.takes_gradient:
            shapes, kept = [v.shape for v in coordinates], former and former.states
            self.states = OwnStates(rule, shapes) if former is None else kept.of_others(rule, shapes, places)
        self._sums: Any = Sums(coordinates) if passes > 1 else None
        if self._sums:
            self._calls = variable(0, tf.int64)

    def vote(self, gradients: list, scaler: Any = None) -> list:
        """The votes on a step's gradients; `scaler`: the Keras optimizer that has scaled their loss, if one has."""
        if scaler is None:
            return self._elect(gradients) if self._sums is None else self._pass(gradients)
        self.election.prepare(gradients, self._coordinates, self._labels)
        gradients = [self.election.dense(g, v) for g, v in zip(gradients, self._coordinates, strict=True)]
        present, name = [g for g in gradients if g is not None], f"{self.election.name}.finite"
        scale = Scale(scaler, present, name, self._process_set, self.election.ranks)
        self.election.scaled = scale.abstaining is not None
        gradients = scale.unscaled(gradients)
        if self._sums is None:
            return scale.scaled(self._elect(gradients, scale.abstaining))
        return scale.scaled(self._pass(gradients, scale.abstaining, scale.heard))

    def _pass(self, gradients: list, abstaining: tf.Tensor | None = None, heard: tf.Tensor | bool = True) -> list:
        """Votes in the last of several passes, zeros in the others. A pass that counts on no rank is none."""
        absent = self.election.prepare(gradients, self._coordinates, self._labels)
        dense = [self.election.dense(g, v) for g, v in zip(gradients, self._coordinates, strict=True)]
        self._sums.add(dense, abstaining)
        passes = self._calls.assign_add(tf.cast(heard, tf.int64))
        last = (passes % self._passes == 0) & heard
        present = tf.cond(last, lambda: self._elect_sums(absent, abstaining), lambda: self._zeros(absent))
        votes = iter(present)
        return [None if none else next(votes) for none in absent]

    def _elect(self, gradients: list, abstaining: tf.Tensor | None = None) -> list:
        states = None if self.states is None else self.states.next(range(len(self._coordinates)))
        coordinates = [
            v if g is None else v._replace(dtype=g.dtype) for v, g in zip(self._coordinates, gradients, strict=True)
        ]
        return self.election.vote(gradients, coordinates, self._labels, states, abstaining)

    def _elect_sums(self, absent: list[bool], abstaining: tf.Tensor | None) -> list:
        means, silent = self._sums.take(self._passes)
        votes = self._elect(means, None if abstaining is None else silent)
        kept = [(vote, v) for vote, v, none in zip(votes, self._coordinates, absent, strict=True) if not none]
        return [tf.cast(vote, v.dtype) for vote, v in kept]

    def _zeros(self, absent: list[bool]) -> list:
        return [tf.zeros(v.shape, v.dtype) for v, none in zip(self._coordinates, absent, strict=True) if not none]


def _remembered(
    compression: SignCompressor, variables: Sequence[Any], gradients: list, options: _Options
) -> _TapeMemory:
    """The memory of these variables in `compression`, made at first use; it goes when a variable goes."""
    own = all(isinstance(v, tf.Variable) for v in variables)
    if compression.rule.states and not own:
        raise ValueError(
            f"this compression keeps the {', '.join(compression.rule.states)} of each variable: take gradients by "
            "variables only"
        )
    coordinates = [_coordinates(v, g) for v, g in zip(variables, gradients, strict=True)]
    labels = [getattr(v, "name", f"number {i}") if own else f"number {i}" for i, v in enumerate(variables)]
    key = (tuple(map(id, variables)) if own else tuple(coordinates), options)
    if key not in compression.memories:
        former, places = _former(compression, key) if own else (None, [])
        memory = _TapeMemory(compression.rule, coordinates, labels, places, former, *options)
        compression.memories[key] = memory
        if compression.rule.states and former is None:
            forgotten.note(compression, variables[0])
        for v in variables if own else ():
            weakref.finalize(v, compression.memories.pop, key, None)
    compression.votes[0] += 1
    return compression.memories[key]


def _former(compression: SignCompressor, key: tuple[tuple, _Options]) -> tuple[Any, list[int | None]]:
    """The latest memory with some of these variables, for the same options, and the variables' places there.

    Where there is none, what was loaded for some of them.
    """
    variables, options = key
    for (others, same), memory in reversed(compression.memories.items()):
        places = [others.index(v) if v in others else None for v in variables]
        if same == options and any(place is not None for place in places):
            return memory, places
    return compression.loaded_for(variables)


def _coordinates(variable: Any, gradient: Any) -> Coordinates:
    dtype = variable.dtype if gradient is None else gradient.dtype
    return Coordinates(tuple(variable.shape), tf.as_dtype(dtype))
