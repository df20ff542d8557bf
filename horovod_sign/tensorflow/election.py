"""Elections: the same coordinates voted on at every step, by ranks that have agreed on them before the first.

The variables of an election go into a few buckets, one message per bucket and phase: a Horovod op costs milliseconds
however little it carries.
"""

import functools
import warnings
import weakref

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from horovod_sign.algebra import plane_bytes
from horovod_sign.graphs.packing import Coordinates, TensorBucket
from horovod_sign.graphs.places import host
from horovod_sign.graphs.refused import refuse_xla
from horovod_sign.graphs.reports import Reports
from horovod_sign.graphs.statistics import Counters, Counts, of_bytes
from horovod_sign.options import require_horovod
from horovod_sign.rules import Rule, in_words
from horovod_sign.statistics import VoteStatistics
from horovod_sign.tensorflow import farewell
from horovod_sign.tensorflow.collectives import GraphCollectives, NodeCollectives
from horovod_sign.tensorflow.handshake import agree, described, invalid
from horovod_sign.tensorflow.reducer import GraphReducer, NodeReducer
from horovod_sign.voting.choice import choose
from horovod_sign.voting.handshake import Item, argument
from horovod_sign.voting.nodes import find_nodes
from horovod_sign.voting.plan import plan
from horovod_sign.voting.protocols import check_transport

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


class Election:
    """What is voted on together by the ranks of a process set, step after step.

    The first votes of the elections of a process set are in the same order on all its ranks: the number in that order
    names an election's Horovod ops.

    Args:
        rule: what each worker votes on.
        process_set: Horovod's.
        abstain: whether zeros, NaN and ties are 0 or +1.
        transport: "exchange", "counts", or "auto": the one that costs less by `voting.choice`.
        bucket_bytes: of the gradients in a bucket; None: BUCKET coordinates.
        hierarchical: each node has one vote, on the mean of its ranks' gradients.
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
        bucket_bytes: int | None = None,
        hierarchical: bool = False,
        instead_of: "Election | None" = None,
    ):
        check_transport(transport)
        self.rule, self.abstain = rule, abstain
        self._process_set, self._transport = process_set, transport
        self._bucket_bytes, self._hierarchical, self._nodes = bucket_bytes, hierarchical, None
        self.counters = Counters() if instead_of is None else instead_of.counters
        self._reports = Reports() if instead_of is None else instead_of._reports
        self._instead_of, self._requests, self._eager, self.scaled = instead_of, [], False, False
        self._missing_everywhere: list[bool] | None = None
        self._plans: dict[tuple[Coordinates, ...], tuple] = {}
        self._warned: set[str] = set()
        _elections.add(self)

    @property
    def rank(self) -> int:
        """This rank in the process set; 0 where this process is no part of it and so votes alone."""
        return self._process_set.rank() if self.ranks > 1 else 0

    @property
    def ranks(self) -> int:
        """How many ranks take part."""
        require_horovod(hvd)
        return self._process_set.size() if self._process_set.included() else 1

    @property
    def size(self) -> int:
        """How many vote: ranks, or nodes."""
        return self.ranks if self._nodes is None else self._nodes.count

    @property
    def voter(self) -> str:
        """Who votes here, for messages."""
        return f"rank {self.rank}" if self._nodes is None else f"the node of rank {self.rank}"

    def statistics(self, earlier: tuple[int, Counts] | None = None) -> VoteStatistics:
        """What happened in the latest vote, or in all since `earlier`, which `totals` said then. Waits for the step."""
        return self.counters.statistics(self.size, earlier)

    def totals(self) -> tuple[int, Counts]:
        """(steps, counts) so far."""
        return self.counters.totals()

    @tf.autograph.experimental.do_not_convert
    def vote(self, gradients, variables: list[Coordinates], labels, states=None, abstaining=None) -> list:
        """The votes on a step's gradients.

        Args:
            gradients: one per variable: a tensor, `tf.IndexedSlices`, or None: this rank has no gradient and abstains.
            variables: shape and dtype of each variable.
            labels: the variables' names, for errors.
            states: the `States` by which the rule votes; None: it votes on gradients as they are.
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
        with host():
            counted = [tf.zeros_like(self.counters.latest)]
        way, planned = self._plan(variables, absent)
        self._eager = tf.executing_eagerly()
        buckets = [
            TensorBucket(
                str(number),
                indices,
                [_present(gradients[i], variables[i]) for i in indices],
                abstaining,
                self.rule,
                states,
            )
            for number, indices in enumerate(planned)
        ]
        if self._nodes is not None:
            self._begin_together(buckets)
        reducer = self._reducer(way)
        reducer.add(buckets)
        for bucket, decided in reducer.decisions():
            counted.append(bucket.counts(decided, self.abstain, self._reports, [labels[i] for i in bucket.indices]))
            for i, vote in zip(bucket.indices, bucket.votes(decided, self.abstain), strict=True):
                votes[i] = vote
        counted.append(of_bytes(reducer.bytes_sent))
        tell = functools.partial(self._reports.tell_disagreement, size=self.size, abstain=self.abstain)
        with host():
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
            self._leave_former()
            self._missing_everywhere = self._agree(gradients, variables, labels, error)
            self._reports.voter = self.voter
        return self._missing_everywhere

    def _leave_former(self):
        former, self._instead_of = self._instead_of, None
        if former is not None and former._requests and self.ranks > 1:
            counted, widths = former._requests[0][0], [width for _, width in former._requests]
            attended = former._nodes is not None
            left = farewell.Former(former.name, counted, former._eager, former.scaled, attended, widths)
            with tf.init_scope():
                farewell.say(left, self._process_set, self.ranks)

    def lapse(self):
        """Forgets what the ranks have agreed on. What has been traced must be traced again."""
        self._missing_everywhere, self._requests = None, []
        self._plans.clear()
        self.counters.forget_mean()

    @staticmethod
    def dense(gradient, variable: Coordinates):
        """A gradient as a dense tensor on which no tape records; repeated indices are summed; None stays None."""
        if gradient is None:
            return None
        if isinstance(gradient, tf.IndexedSlices):
            gradient = tf.math.unsorted_segment_sum(gradient.values, gradient.indices, variable.shape[0])
        return tf.ensure_shape(tf.stop_gradient(tf.convert_to_tensor(gradient)), variable.shape)

    def _plan(self, variables: list[Coordinates], absent: list[bool]) -> tuple[str, list[list[int]]]:
        """How votes on these travel, and which variables go together. The same on all ranks; found out once."""
        key = tuple(variables)
        if key not in self._plans:
            voted_on = sum(v.count for v, none in zip(variables, absent, strict=True) if not none)
            way, planned = self._way(voted_on), _buckets(variables, absent, self._bucket_bytes)
            widths = [sum(plane_bytes(variables[i].count) for i in indices) for indices in planned]
            self._plans[key] = way, planned, [(way == "counts", width) for width in widths]
        way, planned, self._requests = self._plans[key]
        return way, planned

    def _way(self, coordinates: int) -> str:
        """The name of the protocol, for so many coordinates in all: the same on all ranks."""
        if self._transport != "auto":
            return self._transport
        return choose(coordinates, self.size, self.abstain, can_go_direct=False)

    def _reducer(self, way: str) -> GraphReducer:
        voting, nodes = (way, self.abstain, self.name), self._nodes
        if nodes is None:
            return GraphReducer(GraphCollectives(self._process_set, self.rank, self.size), *voting)
        return NodeReducer(nodes, NodeCollectives(nodes), *voting)

    def _begin_together(self, buckets: list[TensorBucket]):
        """Votes of nodes begin when all ranks are known to be there."""
        gradients = farewell.all_there(self.name, self.ranks, [g for bucket in buckets for g in bucket.gradients])
        for bucket in buckets:
            bucket.gradients, gradients = gradients[: len(bucket.indices)], gradients[len(bucket.indices) :]

    def _agree(self, gradients, variables, labels, error) -> list[bool]:
        """Raises an error on all ranks unless they vote on the same variables; says which have no gradient anywhere.

        They also agree on a name for their Horovod ops, which no election of theirs had before.
        """
        with tf.init_scope():
            mine, ranks = np.array([[g is None for g in gradients]], np.uint8), self._process_set.process_set_id
            number = _numbers.get(ranks, 0)
            error = error or invalid(self.rule, self._transport, self.ranks, variables, labels)
            if self.ranks == 1:
                if error is not None:
                    raise error
                of_all = mine
            else:
                number = agree(
                    "the vote", self._items() + described(variables, labels), error, self._process_set, number
                )
                name = f"horovod_sign.tf.{ranks}.missing"
                of_all = np.asarray(hvd.allgather(mine, name=name, process_set=self._process_set))
            _numbers[ranks], self.name = number + 1, f"horovod_sign.tf.{ranks}.{number}"
            self._nodes = find_nodes(hvd) if self._hierarchical and self.ranks > 1 else None
            return of_all.min(axis=0).astype(bool).tolist()

    def _items(self) -> list[Item]:
        """The options that all ranks must have alike."""
        return [
            ("the rule", in_words(self.rule)),
            argument("abstain", self.abstain),
            argument("transport", self._transport),
            argument("bucket_cap_mb", None if self._bucket_bytes is None else self._bucket_bytes / 1e6),
            argument("hierarchical", self._hierarchical),
        ]


def lapse():
    """Horovod has been initialised anew, maybe with other ranks: in all elections they agree again before they vote."""
    _numbers.clear()
    for election in _elections:
        election.lapse()


def _present(gradient, variable: Coordinates):
    return tf.zeros(variable.shape, variable.dtype) if gradient is None else gradient


def _buckets(variables, left_out, bytes_each: int | None = None) -> list[list[int]]:
    """Which variables go together, in order: about BUCKET coordinates, or so many bytes of gradients."""
    there = [i for i, v in enumerate(variables) if v.count and not left_out[i]]
    if bytes_each is None:
        buckets = plan((variables[i].count for i in there), BUCKET)
    else:
        buckets = plan((variables[i].count * variables[i].dtype.size for i in there), bytes_each)
    return [[there[i] for i in bucket] for bucket in buckets]
