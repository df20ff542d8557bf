"""Elections: the same coordinates voted on at every step. Packs gradients, carries the vote, unpacks the votes.

The variables of an election go into a few buckets, one message per bucket and phase: a Horovod op costs milliseconds
however little it carries. A variable starts at a 64-bit word, so padding is inside the words (sign 0, nonzero 1).
"""

import functools
import warnings
import weakref
from typing import NamedTuple

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from horovod_sign.algebra import counts_bits
from horovod_sign.rules import Rule
from horovod_sign.tensorflow import bits as bit
from horovod_sign.tensorflow import farewell, messages
from horovod_sign.tensorflow.ballots import momentum_packer, packer, unpacker
from horovod_sign.tensorflow.collectives import carry_out
from horovod_sign.tensorflow.reports import Reports
from horovod_sign.tensorflow.statistics import Counters, count, count_nans
from horovod_sign.tensorflow.variables import common_name
from horovod_sign.voting.agreement import disagreement, encode_record
from horovod_sign.voting.choice import choose
from horovod_sign.voting.messages import Planes
from horovod_sign.voting.protocols import PROTOCOLS, TRANSPORTS

# Coordinates per bucket: few Horovod ops, and one bucket is packed or unpacked while another is on its way.
BUCKET = 2**24

_LATE = (
    "{} has a gradient, but had none on any rank in the first step and so was left out of the votes: it will not be "
    "trained; let the first step use it on some rank"
)
# How many elections there were by the number of their process set. Ranks need not have counted alike: Horovod gives the
# number of a set that was removed to the next one, of other ranks.
_numbers: dict[int, int] = {}
_elections = weakref.WeakSet()


class Coordinates(NamedTuple):
    """The shape and dtype of one variable's gradient."""

    shape: tuple[int, ...]
    dtype: tf.DType

    @property
    def count(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


class Momentum(NamedTuple):
    """What a rule with momentum reads and writes.

    Attributes:
        slots: one float32 variable per voted variable.
        on_gradient: scalar bool: whether this step's votes are on the gradient (the rule's warm-up).
    """

    slots: list[tf.Variable]
    on_gradient: tf.Tensor | bool = False


class Election:
    """What is voted on together by the ranks of a process set, step after step.

    The first votes of the elections of a process set are in the same order on all its ranks: the number in that order
    names an election's Horovod ops.

    Args:
        rule: what each worker votes on.
        process_set: Horovod's.
        abstain: whether zeros, NaN and ties are 0 or +1.
        transport: "exchange", "counts", or "auto": the one that costs less by `voting.choice`.
        instead_of: an election that this rank has voted in so far and leaves for this one, because layers have been
            frozen, say. If other ranks stay in it, all of them get an error, at this one's first vote.

    Attributes:
        counters: what happened in the votes.
        name: what the names of its Horovod ops begin with; from `prepare` on.
        scaled: set to True if before each vote the ranks tell each other who overflowed.
    """

    def __init__(
        self,
        rule: Rule,
        process_set=hvd.global_process_set,
        abstain: bool = True,
        transport: str = "auto",
        instead_of: "Election | None" = None,
    ):
        if transport not in TRANSPORTS:
            raise ValueError(f"transport must be one of {', '.join(map(repr, TRANSPORTS))}, got {transport!r}")
        self.rule, self.abstain = rule, abstain
        self._process_set, self._transport = process_set, transport
        self.counters = Counters() if instead_of is None else instead_of.counters
        self._reports = Reports() if instead_of is None else instead_of._reports
        self._instead_of, self._requests, self._eager, self.scaled = instead_of, [], False, False
        self._missing_everywhere: list[bool] | None = None
        self._warned: set[str] = set()
        _elections.add(self)

    @property
    def rank(self) -> int:
        """This rank in the process set; 0 where this process is no part of it and so votes alone."""
        return self._process_set.rank() if self.size > 1 else 0

    @property
    def size(self) -> int:
        """How many ranks vote."""
        require_horovod()
        return self._process_set.size() if self._process_set.included() else 1

    @tf.autograph.experimental.do_not_convert
    def vote(self, gradients, variables: list[Coordinates], labels, momentum=None, abstaining=None) -> list:
        """The votes on a step's gradients.

        Args:
            gradients: one per variable: a tensor, `tf.IndexedSlices`, or None: this rank has no gradient and abstains.
            variables: shape and dtype of each variable.
            labels: the variables' names, for errors.
            momentum: the `Momentum` if the rule has one.
            abstaining: scalar bool tensor: this rank abstains on all coordinates in this step; None: never.

        Returns:
            One tensor per variable, -1, 0 or +1 in the gradient's dtype; None where no rank had a gradient in the
            first step.

        Raises:
            TypeError: a gradient is not of a floating dtype.
            ValueError: the ranks do not vote on the same variables. On all ranks, in the first step.
        """
        absent = self.prepare(gradients, variables, labels)
        for gradient, none, label in zip(gradients, absent, labels, strict=True):
            if none and gradient is not None and label not in self._warned:
                self._warned.add(label)
                warnings.warn(_LATE.format(label), stacklevel=2)
        gradients = [self.dense(g, v) for g, v in zip(gradients, variables, strict=True)]
        votes = [None if none else tf.zeros(v.shape, v.dtype) for none, v in zip(absent, variables, strict=True)]
        counted = [tf.zeros_like(self.counters.latest)]
        voted_on = sum(v.count for v, none in zip(variables, absent, strict=True) if not none)
        protocol, self._eager = PROTOCOLS[self._way(voted_on)], tf.executing_eagerly()
        buckets = _buckets(variables, absent)
        picked = [[_present(gradients[i], variables[i]) for i in bucket] for bucket in buckets]
        ballots = [self._pack(pick, bucket, momentum, abstaining) for pick, bucket in zip(picked, buckets, strict=True)]
        self._requests = [(protocol is PROTOCOLS["counts"], ballot.sign.shape[0]) for ballot in ballots]
        running = [protocol(ballot, self.rank, self.size, not self.abstain, messages) for ballot in ballots]
        results = carry_out(running, self._process_set, self.name, self.rank, self.size)
        for bucket, pick, ballot, result in zip(buckets, picked, ballots, results, strict=True):
            decided, counts = self._unpack(pick, [labels[i] for i in bucket], ballot, *result, abstaining)
            counted.append(counts)
            for i, vote in zip(bucket, decided, strict=True):
                votes[i] = vote
        tell = functools.partial(self._reports.tell_disagreement, size=self.size, one_bit=not self.abstain)
        self.counters.end_step(tf.add_n(counted), tell)
        return votes

    def prepare(self, gradients, variables: list[Coordinates], labels, error: Exception | None = None) -> list[bool]:
        """Before the first vote: all ranks agree on what is voted on. Which variables have no gradient on any rank.

        Args:
            gradients, variables, labels: as in `vote`.
            error: why this rank cannot vote, for all ranks to know.
        """
        refuse_xla()
        if self._missing_everywhere is None:
            self._reports.voter = f"rank {self.rank}"
            self._leave_former()
            self._missing_everywhere = self._agree(gradients, variables, labels, error)
        return self._missing_everywhere

    def _leave_former(self):
        former, self._instead_of = self._instead_of, None
        if former is not None and former._requests and self.size > 1:
            counted, widths = former._requests[0][0], [width for _, width in former._requests]
            left = farewell.Former(former.name, counted, former._eager, former.scaled, widths)
            with tf.init_scope():
                farewell.say(left, self._process_set, self.size)

    def lapse(self):
        """Forgets what the ranks have agreed on. What has been traced must be traced again."""
        self._missing_everywhere, self._requests = None, []
        self.counters.forget_mean()

    @staticmethod
    def dense(gradient, variable: Coordinates):
        """A gradient as a dense tensor on which no tape records; repeated indices are summed; None stays None."""
        if gradient is None:
            return None
        if isinstance(gradient, tf.IndexedSlices):
            gradient = tf.math.unsorted_segment_sum(gradient.values, gradient.indices, variable.shape[0])
        return tf.ensure_shape(tf.stop_gradient(tf.convert_to_tensor(gradient)), variable.shape)

    def _way(self, coordinates: int) -> str:
        """The name of the protocol, for so many coordinates in all: the same on all ranks."""
        if self._transport != "auto":
            return self._transport
        return "exchange" if self.size == 1 else choose(coordinates, self.size, self.abstain, can_go_direct=False)

    def _unpack(self, gradients, labels, ballot, decided, sent, abstaining):
        """A bucket's votes, and the counts of what happened in it."""
        layout = tuple((tuple(g.shape), g.dtype) for g in gradients)
        sizes = [g.shape.num_elements() for g in gradients]
        counts, nans = count(ballot, decided, sum(sizes)), tf.constant(0, tf.int64)
        if self.abstain:
            # NaN abstains, so that most steps need no look at the gradients to know that there is none.
            tell = functools.partial(self._reports.tell_nans, labels=labels, sizes=sizes)
            nans = count_nans(gradients, counts.abstained > 0, abstaining, tell)
        votes = unpacker(layout, self.abstain)(decided.sign, decided.nonzero)
        return votes, tf.stack(counts._replace(nans=nans, bytes_sent=sent))

    def _pack(self, gradients, bucket, momentum, abstaining) -> Planes:
        """The ballot on a bucket's gradients, of the variables of these indices."""
        hold = tf.constant(False) if abstaining is None else abstaining
        if momentum is None:
            sign, nonzero = packer(self.abstain)(gradients)
        else:
            slots = [momentum.slots[i] for i in bucket]
            momenta = [slot.read_value() for slot in slots]
            when = (tf.convert_to_tensor(momentum.on_gradient), hold, tf.constant(0, tf.uint32))
            new, sign, nonzero = momentum_packer(self.rule, self.abstain)(gradients, momenta, *when)
            for slot, m in zip(slots, new, strict=True):
                slot.assign(m)
        if abstaining is not None:
            silent = tf.where(abstaining, np.uint8(0), np.uint8(255))
            nonzero = tf.fill(sign.shape, silent) if nonzero is None else tf.bitwise.bitwise_and(nonzero, silent)
        return Planes(sign, nonzero)

    def _agree(self, gradients, variables, labels, error) -> list[bool]:
        """Raises an error on all ranks unless they vote on the same variables; says which have no gradient anywhere.

        They also agree on a name for their Horovod ops, which no election of theirs had before.
        """
        with tf.init_scope():
            lines = [
                f"rule {self.rule}, abstain={self.abstain}, transport={self._transport!r}, {len(variables)} variables"
            ]
            names = map(common_name, labels)
            lines += [f"{name} {v.dtype.name} {v.shape}" for name, v in zip(names, variables, strict=True)]
            error = error or self._invalid(variables, labels)
            ranks = self._process_set.process_set_id
            mine = np.array([[_numbers.get(ranks, 0), *(g is None for g in gradients)]], np.int64)
            if self.size == 1:
                if error is not None:
                    raise error
                of_all = mine
            else:
                what = f"horovod_sign.tf.{ranks}"
                check_agreement(what, "\n".join(lines), error, self._process_set)
                of_all = np.asarray(hvd.allgather(mine, name=f"{what}.missing", process_set=self._process_set))
            number = int(of_all[:, 0].max())
            _numbers[ranks], self.name = number + 1, f"horovod_sign.tf.{ranks}.{number}"
            return of_all[:, 1:].min(axis=0).astype(bool).tolist()

    def _invalid(self, variables, labels):
        for v, label in zip(variables, labels, strict=True):
            if v.dtype not in bit.DTYPES:
                names = ", ".join(d.name for d in bit.DTYPES)
                return TypeError(f"the gradient of {label} is {v.dtype.name}, but votes are on {names}")
        if self._transport == "counts":
            try:
                counts_bits(self.size)
            except ValueError as error:
                return error
        return None


def lapse():
    """Horovod has been initialised anew, maybe with other ranks: in all elections they agree again before they vote."""
    _numbers.clear()
    for election in _elections:
        election.lapse()


def check_agreement(what: str, summary: str, error: Exception | None, process_set):
    """Raises the same error on all ranks if any rank has one or if their summaries differ. Executes eagerly."""
    record = encode_record(summary, error).copy()
    records = hvd.allgather(record[None], name=f"{what}.agree", process_set=process_set)
    found = disagreement(what, np.asarray(records))
    if found is not None:
        raise found


def require_horovod():
    """Raises ValueError unless Horovod is initialized."""
    if not hvd.is_initialized():
        raise ValueError("Horovod is not initialized: call hvd.init() (of horovod.tensorflow) before the first vote")


def refuse_xla():
    """Raises ValueError inside a function compiled by XLA as a whole, where Horovod's ops cannot run."""
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None:
        context = getattr(graph, "_get_control_flow_context", lambda: None)()
        while context is not None:
            if context.IsXLAContext():
                raise ValueError(
                    "Horovod's ops cannot run inside a function compiled by XLA: use jit_compile=False in model.compile"
                    " or tf.function (packing and counting of votes are compiled by themselves)"
                )
            context = context.outer_context
        graph = getattr(graph, "outer_graph", None)


def refuse_sessions():
    """Raises ValueError in graphs that TensorFlow 1 runs in sessions."""
    if tf.executing_eagerly():
        return
    with tf.init_scope():
        if not tf.executing_eagerly():
            raise ValueError(
                "votes and hvs.broadcast_variables work eagerly and in tf.function, not in graphs of TensorFlow 1: "
                "leave tf.Graph().as_default() and tf.compat.v1.disable_eager_execution() out"
            )


def _present(gradient, variable: Coordinates):
    return tf.zeros(variable.shape, variable.dtype) if gradient is None else gradient


def _buckets(variables, left_out) -> list[list[int]]:
    """Which variables go together, in order, each bucket up to about BUCKET coordinates."""
    buckets, room = [], 0
    for i, v in enumerate(variables):
        if left_out[i] or v.count == 0:
            continue
        if not buckets or room < v.count:
            buckets.append([])
            room = BUCKET
        buckets[-1].append(i)
        room -= v.count
    return buckets
