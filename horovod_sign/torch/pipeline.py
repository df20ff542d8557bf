"""Votes on their way while backward still runs: buckets fill as gradients arrive, and each full bucket's vote starts.

Horovod's engine carries the votes of several buckets at once, in the order in which all ranks are ready, so ranks may
start them in different orders.
"""

import functools
from collections.abc import Iterator

import torch
from torch.utils.weak import WeakIdKeyDictionary

from horovod_sign.torch.buckets import Bucket, Slot
from horovod_sign.torch.hierarchy import Attendance, vote_of_nodes
from horovod_sign.torch.nodes import Nodes
from horovod_sign.voting.collectives import Collectives, Vote
from horovod_sign.voting.messages import Planes
from horovod_sign.voting.protocols import PROTOCOLS

# The hook of each parameter: of the optimizer that was made last.
_hooks = WeakIdKeyDictionary()


class Pipeline:
    """The votes of one optimizer.

    Args:
        buckets: what is voted on together; the same on all ranks.
        collectives: what carries the votes.
        transport: "exchange" or "counts".
        abstain: whether zeros, NaN and ties are 0 or +1.
        passes: backward passes per step.
        name: unique among optimizers, the same on all ranks.
        nodes: if votes are those of nodes; `collectives` are then of nodes too.
    """

    def __init__(
        self,
        buckets: list[Bucket],
        collectives: Collectives,
        transport: str,
        abstain: bool,
        passes: int,
        name: str,
        nodes: Nodes | None = None,
    ):
        self.bytes_sent = 0
        self.passes = passes
        self.in_backward = True  # False: nothing is packed before `decisions`
        self._buckets: list[Bucket] = []
        self._collectives, self._name = collectives, name
        self._protocol = PROTOCOLS[transport]
        self._abstain, self._nodes = abstain, nodes
        self._slots: list[Slot] = []
        self._awaited: dict[Bucket, int] = {}
        self._votes: dict[Bucket, Vote] = {}
        self._arrivals = 0
        self.add(buckets)

    def add(self, buckets: list[Bucket]):
        """Takes in buckets of further parameters, which have votes from now on. Their names must be new."""
        for bucket in buckets:
            self._buckets.append(bucket)
            self._slots += bucket.slots
            self._awaited[bucket] = len(bucket.slots)
            for slot in bucket.slots:
                slot.passes_left, p = self.passes, slot.parameter
                if p in _hooks:  # an optimizer made earlier votes on it at its steps, if it still has any
                    _hooks[p].remove()
                _hooks[p] = p.register_post_accumulate_grad_hook(functools.partial(self._gradient_ready, slot))

    def restart(self, collectives: Collectives, name: str):
        """Forgets what is under way and goes on with other ranks, when Horovod has been initialised anew."""
        self._votes.clear()
        self._collectives, self._name = collectives, name
        for bucket in self._buckets:
            bucket.forget()
        self.reset()

    @property
    def started(self) -> bool:
        """Whether gradients have been packed, or votes are on their way."""
        return bool(self._votes or self._arrivals)

    @property
    def untouched(self) -> bool:
        """Whether no backward pass has reached a parameter since the last step."""
        return all(slot.passes_left == self.passes for slot in self._slots)

    def edited(self) -> torch.Tensor | None:
        """A parameter whose gradient was changed by torch after it had been packed in backward, if there is one."""
        if self._nodes is not None:  # where the mean of the node is put into the gradients
            return None
        arrived = (slot for slot in self._slots if slot.seen is not None)
        return next((slot.parameter for slot in arrived if _version(slot.parameter.grad) != slot.seen), None)

    def reset(self):
        """Expects the gradients of a new step. Only when no vote is on its way."""
        self._arrivals = 0
        for slot in self._slots:
            slot.passes_left, slot.seen = self.passes, None
        self._awaited = {bucket: len(bucket.slots) for bucket in self._buckets}

    def check_parameters(self):
        """Raises an error if a step cannot be written to some parameter."""
        for bucket in self._buckets:
            bucket.check_parameters()

    def decisions(self) -> Iterator[tuple[Bucket, Planes]]:
        """Ends the step: starts the votes that wait for gradients that do not come, and yields each as it is decided.

        A parameter without a gradient abstains.
        """
        self.bytes_sent = 0
        attendance = None if self._nodes is None else Attendance(self._name)
        for bucket in self._buckets:
            if bucket not in self._votes:
                self._start(bucket)
        pending = list(self._buckets)
        while pending:
            # Every vote goes on before the next decision is worked on, so that none waits for that work.
            for bucket in pending:
                self._votes[bucket].poll()
            decided = next((bucket for bucket in pending if self._votes[bucket].decided), None)
            if decided is None:
                self._collectives.idle()
                if attendance is not None:
                    attendance.check()
                continue
            pending.remove(decided)
            vote = self._votes.pop(decided)
            self.bytes_sent += vote.bytes_sent
            yield decided, vote.wait()
        if attendance is not None:
            attendance.check(wait=True)
        self.reset()

    def _gradient_ready(self, slot: Slot, p: torch.Tensor):
        slot.passes_left -= 1
        if slot.passes_left < 0:
            raise AssertionError(
                f"gradients were computed more than backward_passes_per_step={self.passes} times before step(): call "
                "step() after that many backward passes, or raise backward_passes_per_step"
            )
        if slot.passes_left > 0 or not self.in_backward:
            return
        bucket = slot.bucket
        # The gradients of nodes are packed later, after their mean.
        due = self._nodes is not None or bucket.arrived(slot, self._abstain)
        slot.seen = _version(p.grad)
        self._arrivals += 1
        self._awaited[bucket] -= 1
        full = self._awaited[bucket] == 0
        if full and not self._collectives.blocking:
            self._start(bucket)
        if due or full:  # where gradients are packed, asking the engine after each would cost more than it gains
            for vote in self._votes.values():
                vote.poll()

    def _start(self, bucket: Bucket):
        if self._nodes is None:
            ballot = bucket.pack(self._abstain)
            protocol = self._protocol(ballot, self._collectives.rank, self._collectives.size, not self._abstain)
        else:
            protocol = vote_of_nodes(self._nodes, bucket, self._protocol, self._abstain)
        self._votes[bucket] = Vote(protocol, self._collectives, f"{self._name}.{bucket.name}")


def _version(gradient: torch.Tensor | None) -> tuple[int, int]:
    """Differs once the gradient has been replaced, or changed in place."""
    return (0, 0) if gradient is None else (id(gradient), gradient._version)
