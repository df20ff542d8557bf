"""All the votes of one optimizer: on which parameters, among which ranks, and what came of them."""

import functools
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError

from horovod_sign.options import in_elastic_job
from horovod_sign.statistics import Monitor, VoteStatistics
from horovod_sign.tensors import resident
from horovod_sign.tensors.bucketing import make_buckets
from horovod_sign.tensors.buckets import Bucket
from horovod_sign.tensors.resident import LateMonitor
from horovod_sign.torch import device
from horovod_sign.torch.collectives import HorovodCollectives
from horovod_sign.torch.handshake import agree
from horovod_sign.torch.hierarchy import NodePipeline
from horovod_sign.torch.membership import Membership
from horovod_sign.torch.pipeline import Pipeline
from horovod_sign.torch.replicas import WAITS_AT_END, ReplicaCheck
from horovod_sign.torch.scaling import Overflow, Scaling
from horovod_sign.torch.transports import carriers
from horovod_sign.voting.handshake import Item, argument
from horovod_sign.voting.messages import Planes
from horovod_sign.voting.nodes import find_nodes

_EDITED = (
    "gradients were changed after backward had packed them for the vote, so that the change does not count in this "
    "vote: to clip or edit gradients before votes, give hvs.DistributedOptimizer overlap=False; to clip the votes, use "
    "optimizer.synchronize() and skip_synchronize()"
)
_NOT_ELASTIC = (
    "the environment says HOROVOD_ELASTIC=1. If the job is elastic, ranks that join must learn what is voted on: keep "
    "the optimizer in hvs.elastic.TorchState instead of hvd.elastic.TorchState; if it is not, unset it"
)

_TOO_LATE = (
    "parameters were added or replaced after backward, when all votes of the step were on their way: their gradients "
    "do not count in this step, and they have votes from the next one on; change param_groups after optimizer.step(), "
    "or give hvs.DistributedOptimizer overlap=False"
)
_FAREWELL = 5  # seconds for which an error waits until the votes of its step are decided


@dataclass(frozen=True)
class Options:
    """What all ranks must want alike, and what a `Votes` is made of."""

    kind: str
    abstain: bool
    transport: str
    passes: int
    bucket_bytes: int
    early: bool
    process_set: Any
    grad_scaler: torch.amp.GradScaler | None
    hierarchical: bool
    check_replicas: int

    def items(self) -> list[Item]:
        """For the agreement of all ranks."""
        scaled = self.grad_scaler is not None and self.grad_scaler.is_enabled()
        return [
            ("the optimizer", self.kind),
            argument("abstain", self.abstain),
            argument("transport", self.transport),
            argument("backward_passes_per_step", self.passes),
            argument("bucket_cap_mb", self.bucket_bytes / 1e6),
            argument("overlap", self.early),
            ("argument grad_scaler", "given" if scaled else "None"),
            argument("hierarchical", self.hierarchical),
            argument("check_replicas", self.check_replicas),
        ]


class Votes:
    """The votes of an optimizer; made, and changed, by all ranks alike.

    Args:
        optimizer: the wrapped one.
        options: what the user wants.
        labels: names of parameters, also of some that have no vote yet.
    """

    def __init__(self, optimizer, options: Options, labels: dict[torch.Tensor, str]):
        self.options = options
        self._optimizer, self._labels = optimizer, labels
        self._members = Membership(optimizer, labels)
        self.pipeline: Pipeline | None = None
        # A rank that joins an elastic job makes its optimizer alone: there all agree at the first step they take.
        self._agreed = not in_elastic_job()
        self.is_elastic, self.has_history = False, False
        name = self._agree(None) if self._agreed else ""
        voted_on = self._members.trainable()
        self._nodes = nodes = find_nodes(hvd) if options.hierarchical else None
        transport, collectives = carriers(voted_on, options, name, self._agreed, nodes)
        monitor, pipeline, self._bucket = self._parts(collectives.size)
        self.monitor = monitor(self._voter(), collectives.size, abstain=options.abstain)
        self.scaling = Scaling(options.grad_scaler, options.process_set, name)
        self.replicas = self._replica_check(name)
        self.pipeline = pipeline([], collectives, transport, options.abstain, options.passes, name)
        self.pipeline.in_backward = options.early and self._agreed and not self.scaling.used
        self._dropped_reported = False
        self._number = 0
        self._make_buckets()
        self.pipeline.asks_for_notice = _weakly(self)

    @property
    def process_set(self):
        """Horovod's, of the ranks that vote."""
        return self.options.process_set

    @property
    def bytes_sent(self) -> int:
        """By this rank to others in the last step."""
        return self.pipeline.bytes_sent

    @property
    def statistics(self) -> VoteStatistics:
        """Of the last step."""
        return self.monitor.latest

    @property
    def untouched(self) -> bool:
        """Whether no backward pass has reached a parameter since the last step."""
        return self.pipeline.untouched

    @property
    def passes(self) -> int:
        """How many backward passes make a step. Changed between steps."""
        return self.pipeline.passes

    @passes.setter
    def passes(self, passes: int):
        self.pipeline.passes = passes
        self.pipeline.reset()

    def give_up(self) -> bool:
        """Expects the gradients of this step anew. False if they are being voted on, and cannot be had again."""
        return self.pipeline.give_up()

    def skip(self):
        """There is no vote in this step: expects the gradients of a new one."""
        self.pipeline.reset()

    def check_step(self):
        """Raises RuntimeError unless the step comes as it should: by the scaler that votes wait for, or by none."""
        self.scaling.check_step(self._optimizer)

    def unscale(self):
        """A scaler may begin to step the optimizer."""
        self.scaling.unscale_at_once(self._optimizer)

    def hide_scale(self):
        """The gradients are votes now, which the optimizer's own step must not unscale."""
        self.scaling.hide_from_base(self._optimizer)

    def end_step(self):
        """The step is over."""
        self.scaling.end_step(self._optimizer)

    def change(self, error: Exception | None = None):
        """Gives votes to parameters that were added or unfrozen. A collective: all ranks have changed alike, or raise.

        Args:
            error: why this rank cannot go on, if it cannot.
        """
        if self._agreed:
            self._agree(error)
        elif error is not None:
            raise error
        self._make_buckets()
        # Parameters that have left are in buckets still, until votes have ended.
        self.pipeline.notice = self._agreed and any(slot.group is None for slot in self.pipeline.slots)

    def learn_names(self, names: dict[torch.Tensor, str]):
        """What to call parameters that have no names yet."""
        self._labels.update({p: name for p, name in names.items() if p not in self._labels})

    def lapse(self):
        """Horovod has been initialised anew: forgets what was under way. All agree again at the next step."""
        self._agreed = False
        self.pipeline.restart(HorovodCollectives(self.options.process_set), "")
        self.pipeline.in_backward = False

    def settle(self) -> Overflow:
        """What must be known before the votes of a step: which parameters, and who has overflowed. A collective."""
        if not self._agreed:
            self._agree_anew()
        self.pipeline.notice |= self._has_changed()
        self.pipeline.check_parameters()
        if not self.pipeline.slots and self.total([float(self.pipeline.notice)], "changed")[0]:
            self.change()  # there are no votes yet to carry notices
        if self.pipeline.edited():
            warnings.warn(_EDITED, stacklevel=8)
        self.replicas.begin()
        return self.scaling.settle(self._optimizer)

    def decisions(self) -> Iterator[tuple[Bucket, Planes]]:
        """The votes of the step, each as soon as it is decided."""
        self.monitor.begin()
        changed = False
        for bucket, decided in self.pipeline.decisions():
            if self.pipeline.noticed and not changed:  # on all ranks, and new parameters vote in this step too
                changed = True
                self.change()
            self.monitor.tell_nan(bucket)
            yield bucket, decided
            self.monitor.count_vote(bucket, decided)  # while a device takes the step
        if self.pipeline.noticed and not changed:  # told only in the end
            self.change()
            changed = True
        if changed and self.pipeline.notice:
            self._renew_buckets()
        self.monitor.end(self.pipeline.bytes_sent)
        self.replicas.conclude(WAITS_AT_END)
        self.has_history = True

    @contextmanager
    def concluded(self):
        """Around what is done with the votes of a step: if it fails, they go on to their end for the other ranks."""
        try:
            yield
        except HorovodInternalError:  # no vote goes on; elastic Horovod catches it
            raise
        except Exception:
            with torch.no_grad():
                self.pipeline.conclude(_FAREWELL)
            raise

    def new_gradients(self) -> bool:
        """Whether a backward pass has reached a parameter of any rank since the last vote. A collective."""
        new = not self.pipeline.untouched or self._has_changed()
        return self.total([float(new)], "new_gradients")[0] > 0

    def total(self, numbers: list[float], what: str) -> list[float]:
        """The sums over all ranks of numbers. A collective; `what` is for its name."""
        if not self._agreed:
            self._agree_anew()
        values = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        name = f"{self.pipeline.name}.{what}"
        return hvd.allreduce(values, name=name, op=hvd.Sum, process_set=self.options.process_set).tolist()

    def withhold(self):
        """Drops the gradients that would be voted on, so that this rank abstains as a whole in this step."""
        for p in self._members.trainable():
            p.grad = None
        self.pipeline.silent = True

    def drop_what_had_none(self):
        """Drops gradients of parameters that had no vote in this step, as they are this rank's own."""
        for p in self._members.trainable() if self._has_changed() else ():
            if p.grad is not None and p not in self._members.names:
                p.grad = None
                if not self._dropped_reported:
                    self._dropped_reported = True
                    warnings.warn(_TOO_LATE, RuntimeWarning, stacklevel=6)

    def _agree_anew(self):
        if not self.is_elastic:
            raise RuntimeError(_NOT_ELASTIC)
        self.pipeline.replace([])  # ranks that have joined have other buckets, if parameters have changed since
        name = self._agree(None)
        collectives = HorovodCollectives(self.options.process_set)
        self.pipeline.restart(collectives, name)
        self.scaling = Scaling(self.options.grad_scaler, self.options.process_set, name)
        self.replicas = self._replica_check(name)
        self.monitor.restart(self._voter(), collectives.size)
        self.pipeline.in_backward = self.options.early and not self.scaling.used
        self._number = 0
        self._members.take_in()
        self._renew_buckets()
        self._agreed = True

    def _replica_check(self, name: str) -> ReplicaCheck:
        every, process_set = self.options.check_replicas, self.options.process_set
        return ReplicaCheck(self._optimizer, self._labels, every, process_set, name)

    def _voter(self) -> str:
        return f"rank {hvd.rank()}" if self._nodes is None else f"the node of rank {hvd.rank()}"

    def _has_changed(self) -> bool:
        return self._members.has_changed(self.pipeline.slots)

    def _agree(self, error: Exception | None) -> str:
        items = []
        try:
            slots = []
            if self.pipeline is not None:
                self._has_changed()
                self.pipeline.raise_error()
                slots = self.pipeline.slots
            if error is None:
                if self.options.transport == "device":
                    resident.check_kernels(resident.device_of(self._members.trainable()))
                items = [*self.options.items(), *self._members.items(slots)]
        except Exception as unvotable:  # whatever it is: the other ranks wait
            error = unvotable
        return agree(items, error, self.options.process_set)

    def _parts(self, size: int):
        """What makes the monitor, the pipeline and the buckets of `size` voters."""
        if self.options.transport == "device":
            return LateMonitor, *device.parts(self.options.process_set, size)
        return Monitor, Pipeline if self._nodes is None else functools.partial(NodePipeline, self._nodes), Bucket

    def _make_buckets(self):
        self.pipeline.add(self._buckets_of(self._members.take_in()))
        self.pipeline.agreed()

    def _renew_buckets(self):
        """Has votes on what is trained now, and on nothing that was before. All ranks have agreed on it."""
        self._optimizer.drop_vote_states([slot.parameter for slot in self.pipeline.slots if slot.group is None])
        self.pipeline.replace(self._buckets_of(self._members.renew()))
        self.pipeline.notice = False

    def _buckets_of(self, parameters: dict[torch.Tensor, str]) -> list[Bucket]:
        self._optimizer.make_vote_states(parameters)
        size, layouts = self.options.bucket_bytes, self._members.layouts
        buckets = make_buckets(self._optimizer, parameters, size, self._number, layouts, self._bucket)
        self._number += len(buckets)
        return buckets


def _weakly(votes: Votes):
    """Whether the votes have changed, asked by what they own."""
    reference = weakref.ref(votes)

    def has_changed() -> bool:
        alive = reference()
        return alive is not None and alive._has_changed()

    return has_changed
