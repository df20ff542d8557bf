"""Votes on their way while backward still runs: buckets fill as gradients arrive, and each full bucket's vote starts.

Horovod's engine carries the votes of several buckets at once, in the order in which all ranks are ready, so ranks may
start them in different orders.
"""

import contextlib
import functools
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import torch
from torch.utils.weak import WeakIdKeyDictionary

from horovod_sign.tensors.buckets import Bucket, Slot
from horovod_sign.torch import progress
from horovod_sign.torch.edits import Watch
from horovod_sign.torch.hierarchy import Attendance, averaged_in_place, vote_of_nodes
from horovod_sign.torch.interrupts import undisturbed
from horovod_sign.voting.collectives import Collectives, Vote
from horovod_sign.voting.messages import Planes
from horovod_sign.voting.nodes import Nodes
from horovod_sign.voting.notices import Notices
from horovod_sign.voting.protocols import PROTOCOLS

OTHER_LOSS = (
    "If this was the backward pass of another optimizer's loss that flows through these parameters, as a GAN "
    "generator's does through the discriminator, keep them out of it (requires_grad_(False) meanwhile, or "
    "loss.backward(inputs=list(generator.parameters()))), or give their optimizer overlap=False"
)
_SENT = 1 << 62  # backward passes that are left for a gradient whose vote of this step is already given

_HELD_UP = 0.1  # seconds for which something else waits before it starts votes that `step` would have started

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
        self.slots: list[Slot] = []
        self.in_backward = True  # False: nothing is packed before `decisions`
        self.silent = False  # True: this rank abstains in this step, even where `abstain` is False
        # Whether ballots carry a notice to all ranks, and whether one of this step did, on any rank.
        self.notice, self.noticed = False, False
        self.asks_for_notice: Callable[[], bool] = _no_notice
        self._buckets: list[Bucket] = []
        self._collectives, self.name = collectives, name
        self._protocol = PROTOCOLS[transport]
        self._abstain, self._nodes = abstain, nodes
        self._awaited: dict[Bucket, int] = {}
        # A bucket is unstarted, then packing (on a device, perhaps), then has a vote.
        self._packing: list[Bucket] = []
        self._votes: dict[Bucket, Vote] = {}
        self._unstarted: list[Bucket] = []
        self._held_up_since: float | None = None
        self._notices: dict[Bucket, Notices] = {}
        self._arrivals = 0
        self._error: Exception | None = None
        self._edits = Watch()
        # Whether a backward pass has begun and not ended; and the pass itself, which dies with an exception, too.
        self._unfinished, self._pass = False, _no_pass
        self._kept = 0
        self._lock = threading.RLock()  # backward has a thread for each device
        self.add(buckets)
        progress.add(self)

    def add(self, buckets: list[Bucket]):
        """Takes in buckets of further parameters, which have votes from now on. Their names must be new."""
        for bucket in buckets:
            self._buckets.append(bucket)
            self._unstarted.append(bucket)
            self.slots += bucket.slots
            self._awaited[bucket] = len(bucket.slots)
            for slot in bucket.slots:
                slot.passes_left, p = self.passes, slot.parameter
                if p in _hooks:  # an optimizer made earlier votes on it at its steps, if it still has any
                    _hooks[p].remove()
                # Weak: torch hides what a hook holds from the garbage collector, and a slot holds its parameter.
                hook = functools.partial(_gradient_ready, weakref.ref(self), weakref.ref(slot))
                slot.hook = _hooks[p] = p.register_post_accumulate_grad_hook(hook)

    def replace(self, buckets: list[Bucket]):
        """Has votes on these buckets from now on, and no others. Only when no vote is on its way."""
        for slot in self.slots:
            slot.hook.remove()
            if _hooks.get(slot.parameter) is slot.hook:
                del _hooks[slot.parameter]
        self._buckets, self.slots, self._awaited = [], [], {}
        self.reset()
        self.add(buckets)

    def restart(self, collectives: Collectives, name: str):
        """Forgets what is under way and goes on with other ranks, when Horovod has been initialised anew."""
        self._votes.clear()
        self._packing.clear()
        self._collectives, self.name = collectives, name
        for bucket in self._buckets:
            bucket.forget()
        self.reset()

    @property
    def started(self) -> bool:
        """Whether gradients have been packed, or votes are on their way."""
        return bool(self._arrivals or self._given > self._kept)

    @property
    def _given(self) -> int:
        """Of how many buckets this rank's ballot is given, and nothing decided."""
        return len(self._packing) + len(self._votes)

    @property
    def untouched(self) -> bool:
        """Whether no backward pass has reached a parameter since the last step."""
        return all(slot.passes_left == self.passes for slot in self.slots)

    def edited(self) -> bool:
        """Whether gradients were changed after they had been packed in backward. Asked in each step; says so once."""
        return self._edits.finds_change(self.slots)

    def reset(self):
        """Expects the gradients of a new step. Only when no vote is on its way."""
        self._arrivals, self._kept, self._unfinished = 0, 0, False
        for slot in self.slots:
            slot.passes_left, slot.seen = self.passes, None
        self._awaited = {bucket: len(bucket.slots) for bucket in self._buckets}
        self._unstarted, self._held_up_since = list(self._buckets), None
        self._notices.clear()
        self.silent, self.noticed = False, False

    def agreed(self):
        """All ranks have the same parameters frozen now."""
        for bucket in self._buckets:
            bucket.trainable = [slot for slot in bucket.slots if slot.parameter.requires_grad]

    def check_parameters(self):
        """Finds out whether a step can be written to all parameters. If not, all ranks hear of it by a notice.

        Where all ballots are under way, and none can carry it, the error is raised here.
        """
        try:
            for bucket in self._buckets:
                bucket.check_parameters()
        except (RuntimeError, TypeError) as error:
            if self._error is None and not self._unstarted and self._nodes is None:
                raise
            self._error, self.notice = error, True

    def raise_error(self):
        """Raises what kept this rank from voting or stepping, if something did."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def give_up(self) -> bool:
        """Expects the gradients of this step anew. False if they are being voted on, and cannot be had again.

        After a backward pass that has ended by an exception they can: the votes that it had started are those of this
        rank in this step, and all else is computed again.
        """
        interrupted = self._unfinished and self._pass() is None
        if self.started and not interrupted:
            return False
        if interrupted or self._kept:
            self._resume()
        else:
            self.reset()
        return True

    def decisions(self) -> Iterator[tuple[Bucket, Planes]]:
        """Ends the step: starts the votes that wait for gradients that do not come, and yields each as it is decided.

        A parameter without a gradient abstains.
        """
        self.bytes_sent, self.noticed = 0, False
        for bucket in self._buckets:
            self._tell_of_error(bucket)
        attendance = None if self._nodes is None else Attendance(self.name, self.notice)
        while self._unstarted or self._given:
            # Every vote goes on before the next decision is worked on, so that none waits for that work.
            self._go_on()
            decided = next((bucket for bucket in self._buckets if self._is_decided(bucket)), None)
            if attendance is not None:
                attendance.check()
                if not attendance.known:  # nothing moves before
                    decided = None
            if decided is None:
                progress.go_on()
                self._collectives.idle()
                continue
            vote = self._votes.pop(decided)
            self.bytes_sent += vote.bytes_sent
            self.noticed |= decided in self._notices and self._notices[decided].found
            self.noticed |= attendance is not None and attendance.notices > 0
            yield decided, vote.wait()
        noticed = self.noticed
        if attendance is not None:
            attendance.check(wait=True)
            noticed |= attendance.notices > 0
        self.reset()
        self.noticed = noticed

    def conclude(self, seconds: float):
        """A step has failed here: takes part in its votes to the end all the same, for so many seconds, and drops them.

        Other ranks may wait for them; and if all have failed, ops that only some have started would stay in Horovod's
        engine, which dies of them when a rank joins. If this rank has started no vote, nothing is done.
        """
        under_way = self.started or len(self._unstarted) < len(self._buckets)
        until = time.monotonic() + seconds
        while under_way and time.monotonic() < until:
            under_way = self._drop_decided() or bool(self._unstarted or self._packing)
            with contextlib.suppress(Exception):  # the step has failed of something else already, which is told
                self._go_on()
            self._collectives.idle()
        if not under_way:
            self.reset()

    def _drop_decided(self) -> bool:
        """Forgets votes that are decided or have failed; returns whether there are others."""
        for bucket, vote in list(self._votes.items()):
            with contextlib.suppress(Exception):
                vote.poll()
                if not vote.decided:
                    continue
            del self._votes[bucket]
        return bool(self._votes)

    def poll(self):
        """Goes on as far as possible without waiting, while this process waits for something else.

        That may be another optimizer, where other ranks step this one first. So votes that need not wait for `step`,
        since all gradients were there in backward, then start; not at once, since in this order changes still count.
        """
        due = list(self._unstarted) if self._arrivals and not any(self._awaited.values()) else []
        if due:
            self.notice |= self.asks_for_notice()
            if self._held_up_since is None:
                self._held_up_since = time.monotonic()
        if due or self._given:
            self._go_on(start=False)
        if due and time.monotonic() - self._held_up_since > _HELD_UP:
            try:
                self._go_on()
            except Exception:  # the next step of this optimizer tries again, and raises it
                self._held_up_since = math.inf
        for bucket in due:
            if bucket not in self._unstarted:
                self._note(bucket.slots)

    def _go_on(self, start: bool = True):
        """Polls votes and, if asked to, starts those that have not been: all, or if they are ordered the next one."""
        self._vote_on_packed()
        for vote in list(self._votes.values()):
            vote.poll()
        while start and self._unstarted and (not self._collectives.ordered or self._all_decided()):
            self._start(self._unstarted[0])

    def _all_decided(self) -> bool:
        return not self._packing and all(vote.decided for vote in self._votes.values())

    def _is_decided(self, bucket: Bucket) -> bool:
        return bucket in self._votes and self._votes[bucket].decided

    def _gradient_ready(self, slot: Slot, p: torch.Tensor):
        with self._lock:
            self._take_gradient(slot)

    def _take_gradient(self, slot: Slot):
        slot.passes_left -= 1
        if not self.in_backward:  # the vote will be on what is there in `step`
            return
        if self._pass() is None:
            with undisturbed():
                self._begin_pass(slot)
        if slot.passes_left < 0:
            raise AssertionError(
                f"gradients were computed more than backward_passes_per_step={self.passes} times before step(): call "
                f"step() after that many backward passes, or raise backward_passes_per_step. {OTHER_LOSS}"
            )
        if slot.passes_left > 0:
            return
        bucket = slot.bucket
        # The gradients of nodes are packed later, after their mean.
        due = self._nodes is not None or bucket.arrived(slot)
        self._arrivals += 1
        self._awaited[bucket] -= 1
        full = self._awaited[bucket] == 0 and not self._collectives.ordered
        if due or full:  # where gradients are packed, asking the engine after each would cost more than it gains
            with undisturbed():
                self._take_in(bucket, full)

    def _take_in(self, bucket: Bucket, full: bool):
        """Packs what has arrived in a bucket, starts its vote if that is all, and goes on with all votes."""
        packed = bucket.slots
        if self._nodes is None:
            packed = bucket.pack_waiting(self._abstain)
        if full:
            self._start(bucket)
        if full or self._nodes is None:
            self._note(packed)
        self._go_on(start=False)

    def _note(self, packed: list[Slot]):
        if self._error is not None or any(slot.bucket.error is not None for slot in packed):
            return  # what cannot be read cannot be compared
        if self._nodes is None:
            self._edits.note(packed)
        else:  # the mean comes into the gradients, which torch does not notice unless it is by a copy
            gradients = [(slot, slot.parameter.grad) for slot in packed]
            self._edits.note([slot for slot, g in gradients if g is not None and averaged_in_place(g)], final=False)

    def _begin_pass(self, slot: Slot):
        """The first gradient of a backward pass, that of `slot`."""
        if self._unfinished:  # the pass before has ended by an exception
            self._resume()
            slot.passes_left -= 1
        self.notice |= self.asks_for_notice()
        self.check_parameters()
        token, engine = _Pass(), torch.autograd.Variable._execution_engine
        self._pass, self._unfinished = weakref.ref(token), True
        engine.queue_callback(functools.partial(id, token))  # no frame of a traceback may hold it
        engine.queue_callback(self._end_pass)

    def _end_pass(self):
        self._unfinished = False

    def _resume(self):
        """Expects again what an interrupted backward pass had not packed. Votes that had started stay as they are."""
        self._arrivals, self._kept, self._unfinished = 0, self._given, False
        for bucket in self._buckets:
            started = bucket not in self._unstarted
            if not started:
                bucket.retract()
            for slot in bucket.slots:
                given = started or slot.taken
                slot.passes_left, slot.seen = _SENT if given else self.passes, None
            self._awaited[bucket] = sum(slot.passes_left != _SENT for slot in bucket.slots)

    def _tell_of_error(self, bucket: Bucket):
        """What a bucket could not read, all ranks hear of by the next ballot, or the next step of votes of nodes."""
        if bucket.error is not None:
            self._error, self.notice, bucket.error = bucket.error, True, None

    def _start(self, bucket: Bucket):
        """Packs a bucket, and starts its vote once it is packed: at once, unless a device does that meanwhile."""
        if self._nodes is None:
            bucket.launch(self._abstain or self.silent)
        self._unstarted.remove(bucket)
        self._packing.append(bucket)
        self._vote_on_packed()

    def _vote_on_packed(self):
        for bucket in [bucket for bucket in self._packing if bucket.packed]:
            if self._nodes is None:
                ballot = bucket.collect()
                self._tell_of_error(bucket)
                ops = self._notices[bucket] = Notices(self.notice)
                rank, size = self._collectives.rank, self._collectives.size
                protocol = self._protocol(ballot, rank, size, not self._abstain, ops)
            else:
                protocol = vote_of_nodes(self._nodes, bucket, self._protocol, self._abstain)
            self._packing.remove(bucket)
            self._votes[bucket] = Vote(protocol, self._collectives, f"{self.name}.{bucket.name}")


class _Pass:
    """A backward pass, for as long as it runs."""


def _no_pass() -> None:
    return None


def _no_notice() -> bool:
    return False


@torch.compiler.disable  # of compiled autograd
def _gradient_ready(pipeline: weakref.ref, slot: weakref.ref, p: torch.Tensor):
    """The hook of a parameter, as long as there is an optimizer that votes on it."""
    pipeline, slot = pipeline(), slot()
    if pipeline is not None and slot is not None:
        pipeline._gradient_ready(slot, p)
