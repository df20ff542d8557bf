"""`Compression.signsgd()`, `signum()`, `lion()`, `of(rule)`: Horovod's `compression=`, here and in its own wrappers.

In Horovod's own `DistributedGradientTape` and `allreduce`, with op=hvd.Sum, a gradient goes out as bit-counts (fields
of an int64 tensor, added by an ordinary allreduce) and comes back as the vote, -1, 0 or +1, in the gradient's dtype.
"""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from horovod_sign import rules
from horovod_sign.algebra import counts_bits
from horovod_sign.graphs import bits as bit
from horovod_sign.graphs import messages
from horovod_sign.graphs.ballots import pack_by, packer, unpacker
from horovod_sign.graphs.places import from_host, host, on_host, to_host
from horovod_sign.graphs.variables import underlying
from horovod_sign.options import require_horovod
from horovod_sign.statistics import VoteStatistics
from horovod_sign.tensorflow.memory import OwnStates, flat
from horovod_sign.tensorflow.repeated import at_each_run
from horovod_sign.tensorflow.states import RankStates
from horovod_sign.voting.messages import Planes

_NO_MOMENTUM = (
    "Compression.signum(), or any other that remembers something, cannot work in Horovod's own "
    "DistributedGradientTape and allreduce, which do not say whose gradient they compress: use "
    "hvs.DistributedGradientTape, or Compression.signsgd()"
)
_AVERAGED = (
    "the bit-counts were averaged, which destroys the vote: use op=hvd.Sum (Horovod's default is Average) and leave "
    "gradient_predivide_factor alone"
)


class Loaded(NamedTuple):
    """States of variables that have no vote yet.

    Attributes:
        states: of a rule.
        election: that there is none.
    """

    states: OwnStates
    election: None = None


class SignCompressor:
    """A compressor in Horovod's sense, and the rule of `hvs` wrappers. Made by `Compression`.

    Attributes:
        rule: what each worker votes on.
        memories: what `hvs.DistributedGradientTape` remembers between steps, by the variables it is for.
        votes: how many tapes have asked for votes, executed eagerly or traced; in a list, which outlives this.
        loaded: what was loaded before a first vote, likewise.
    """

    def __init__(self, rule: rules.Rule, abstain: bool = True) -> None:
        self.rule, self._abstain = rules.check_rule(rule), abstain
        self.memories: dict = {}
        self.votes = [0]
        self.loaded: dict[tuple[int, ...], Loaded] = {}

    def vote_statistics(self) -> VoteStatistics:
        """What happened, on this rank, in the latest vote of the `hvs.DistributedGradientTape` made with this.

        Raises:
            ValueError: several lists of variables were voted on with it.
        """
        elections = [memory.election for memory in self.memories.values()]
        if len({id(election.counters) for election in elections}) > 1:
            raise ValueError(
                "this compression has voted on several lists of variables: give the tapes of each a compression of "
                "their own"
            )
        return elections[0].statistics() if elections else VoteStatistics()

    @property
    def bytes_sent(self) -> int:
        """By this rank to others in that vote."""
        return self.vote_statistics().bytes_sent

    def state_dict(self, variables: Sequence[Any]) -> dict[str, np.ndarray]:
        """What this rank votes by, momenta for example, for these variables of a tape: arrays for `numpy.savez`."""
        own = self._own(variables)
        if own is None:
            return {}
        states = {f"momentum{i}": slot.numpy()[None] for i, slot in enumerate(flat(own.slots))}
        return {**states, "votes": own.votes.numpy()}

    def gather_state_dict(
        self, variables: Sequence[Any], process_set: hvd.ProcessSet = hvd.global_process_set
    ) -> dict[str, np.ndarray]:
        """`state_dict` with what all ranks vote by, along the first axis of each array, for one file. A collective.

        Raises:
            ValueError: ranks have other variables, or rules that keep something else. On all ranks.
        """
        own, error = None, None
        try:
            own = self._own(variables)
        except Exception as invalid:  # whatever it is: the other ranks wait
            error = invalid
        return _kept(own, process_set).gather("gather_state_dict", error=error)

    def load_state_dict(
        self,
        saved: Mapping[str, np.ndarray],
        variables: Sequence[Any],
        process_set: hvd.ProcessSet = hvd.global_process_set,
    ) -> None:
        """Goes on with saved states: this rank's own, or if they are of another number of ranks with their mean.

        Args:
            saved: what `state_dict` or `gather_state_dict` gave. Before or after the first vote.
            variables: those that they were saved for, in the same order.
            process_set: Horovod's, of the ranks that vote.

        Raises:
            ValueError: the saved states are those of other variables or of another compression, or lack "votes".
                Nothing is loaded then.
        """
        own = self._own(variables)
        slots = [] if own is None else flat(own.slots)
        wanted = {f"momentum{i}": tuple(slot.shape) for i, slot in enumerate(slots)}
        found = {key: np.shape(value)[1:] for key, value in saved.items() if key != "votes"}
        if found != wanted:
            raise ValueError(
                f"the saved states are not of this compression and these variables: they have {found or 'nothing'}, "
                f"but here are {wanted or 'none'}"
            )
        if own is not None and "votes" not in saved:
            raise ValueError('the saved states do not say how many votes they have seen: "votes" is not among them')
        if own is not None:
            _kept(own, process_set).take(saved)

    def loaded_for(self, variables: tuple[int, ...]) -> "tuple[Loaded | None, list[int | None]]":
        """What was loaded last for some of the variables of these identities, and the place of each in that."""
        for others, loaded in reversed(self.loaded.items()):
            places = [others.index(v) if v in others else None for v in variables]
            if any(place is not None for place in places):
                return loaded, places
        return None, []

    def _own(self, variables: Sequence[Any]) -> OwnStates | None:
        """The states of these variables; None if the rule keeps none."""
        if self.rule.takes_gradient:
            return None
        sources = [underlying(v) for v in variables]
        key, shapes = tuple(map(id, sources)), [tuple(v.shape) for v in sources]
        known = [(others, memory) for (others, _), memory in self.memories.items()]
        for others, memory in reversed([*self.loaded.items(), *known]):
            if set(key) <= set(others):
                return memory.states.of_others(self.rule, shapes, [others.index(v) for v in key])
        self.loaded[key] = Loaded(OwnStates(self.rule, shapes))
        for v in sources:
            weakref.finalize(v, self.loaded.pop, key, None)
        return self.loaded[key].states

    def compress(self, tensor: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """The fields of this rank's ballot, as int64 words, and what `decompress` needs."""
        if self.rule.states or self.rule.warmup_steps:
            raise ValueError(_NO_MOMENTUM)
        require_horovod(hvd)
        tensor = tf.convert_to_tensor(tensor)
        if tensor.dtype not in bit.DTYPES:
            raise TypeError(f"a vote is on {', '.join(d.name for d in bit.DTYPES)}, got a {tensor.dtype.name} tensor")
        bits = counts_bits(hvd.size())
        if self.rule.takes_gradient:
            planes = packer(self._abstain)([tensor])
        else:
            _, *planes = pack_by(self.rule, self._abstain, [tensor], [[]], tf.constant(False), tf.constant(False))
        words = messages.encode_fields(to_host(Planes(*planes)), bits)
        with host():
            sent = at_each_run(words)
        return sent, _Context(tuple(tensor.shape), tensor.dtype, bits, words)

    def decompress(self, tensor: tf.Tensor, ctx: Any) -> tf.Tensor:
        """The vote in the summed words, in the shape and dtype of the gradient."""
        decided = self._decided(tensor, ctx)
        return unpacker(((ctx.shape, ctx.dtype),), self._abstain)(*from_host(decided))[0]

    @on_host
    def _decided(self, tensor: tf.Tensor, ctx: "_Context") -> Planes:
        tensor = tf.ensure_shape(tensor, ctx.words.shape)
        # The last word counts the voters. An average makes it 1 (or 0) whatever their number; so does a sum when all
        # other ranks have joined, but then the words are what this rank sent.
        summed = (tensor[-1] > 1) | tf.reduce_all(tensor == ctx.words)
        if tf.executing_eagerly() and not summed:
            raise ValueError(_AVERAGED)
        with tf.control_dependencies([tf.debugging.Assert(summed, [_AVERAGED])]):
            tensor = tf.identity(tensor)
        return messages.decode_fields(tensor, ctx.bits, abstain=self._abstain)


def _kept(own: OwnStates | None, process_set: hvd.ProcessSet) -> RankStates:
    """The states of a rule; none if it keeps none."""
    if own is None:
        return RankStates([], [], None, process_set)
    return RankStates(flat(own.slots), [own.votes], own.votes.numpy, process_set)


class _Context(NamedTuple):
    shape: tuple[int, ...]
    dtype: tf.DType
    bits: int
    words: tf.Tensor


class Compression(hvd.Compression):
    """The compressions, made as in `hvs.DistributedGradientTape(tape, compression=hvs.Compression.signum())`.

    Horovod's own, `none` and `fp16`, are here too: for its other functions, and where a script names the default.
    """

    @staticmethod
    def signsgd(abstain: bool = True) -> SignCompressor:
        """Vote on gradients. `abstain` counts in Horovod's own wrappers only; those of `hvs` have their own."""
        return SignCompressor(rules.signsgd(), abstain)

    @staticmethod
    def signum(momentum: float = 0.9, warmup: bool = False, abstain: bool = True) -> SignCompressor:
        """Vote on each worker's momentum of its gradients, m <- momentum * m + (1 - momentum) * g in float32.

        In the wrappers of `hvs` only. Make it once, outside of the training step: it is what remembers the momenta of a
        tape's variables.

        Args:
            momentum: in [0, 1).
            warmup: vote on gradients for the first C(momentum) steps.
            abstain: as in `signsgd`.
        """
        return SignCompressor(rules.signum(momentum, warmup), abstain)

    @staticmethod
    def lion(beta_1: float = 0.9, beta_2: float = 0.99, abstain: bool = True) -> SignCompressor:
        """Vote as Distributed Lion does: on beta_1 * m + (1 - beta_1) * g, then m <- beta_2 * m + (1 - beta_2) * g.

        As with `signum`, in the wrappers of `hvs` only, and made once.

        Args:
            beta_1, beta_2: in [0, 1).
            abstain: as in `signsgd`.

        Reference: Liu et al. 2024, arXiv 2404.00438, Algorithm 1.
        """
        return SignCompressor(rules.lion(beta_1, beta_2), abstain)

    @staticmethod
    def of(rule: rules.Rule, abstain: bool = True) -> SignCompressor:
        """Vote by a rule, of one's own for example (see `hvs.Rule`). With states as `signum`.

        Args:
            rule: an object of a class derived from `hvs.Rule`.
            abstain: as in `signsgd`.
        """
        return SignCompressor(rule, abstain)
