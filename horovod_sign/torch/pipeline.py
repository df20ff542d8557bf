"""Hooks and backward passes: buckets fill as gradients arrive, and the vote of each that is full starts.

Horovod's engine carries the votes of several buckets at once, in the order in which all ranks are ready, so ranks may
start them in different orders.
"""

import functools
import math
import threading
import time
import weakref
from collections.abc import Callable

import torch
from torch.utils.weak import WeakIdKeyDictionary

from horovod_sign.tensors.buckets import Bucket
from horovod_sign.tensors.slots import Slot
from horovod_sign.torch.edits import Watch
from horovod_sign.voting import progress
from horovod_sign.voting.collectives import Collectives
from horovod_sign.voting.reducer import Reducer

OTHER_LOSS = (
    "If this was the backward pass of another optimizer's loss that flows through these parameters, as a GAN "
    "generator's does through the discriminator, keep them out of it (requires_grad_(False) meanwhile, or "
    "loss.backward(inputs=list(generator.parameters()))), or give their optimizer overlap=False"
)
_SENT = 1 << 62  # backward passes that are left for a gradient whose vote of this step is already given

_HELD_UP = 0.1  # seconds for which something else waits before it starts votes that `step` would have started

# The hook of each parameter: of the optimizer that was made last.
_hooks = WeakIdKeyDictionary()


class Pipeline(Reducer):
    """The votes of one optimizer, whose buckets fill as gradients arrive.

    Args:
        buckets: what is voted on together; the same on all ranks.
        collectives: what carries the votes.
        transport: "exchange" or "counts".
        abstain: whether zeros, NaN and ties are 0 or +1.
        passes: backward passes per step.
        name: unique among optimizers, the same on all ranks.
    """

    packs_in_backward = True  # not only when a bucket is full
    carries_late_notices = False  # also those that come when all ballots are under way

    def __init__(
        self, buckets: list[Bucket], collectives: Collectives, transport: str, abstain: bool, passes: int, name: str
    ):
        super().__init__(collectives, transport, abstain, name)
        self.passes = passes
        self.slots: list[Slot] = []
        self.in_backward = True  # False: nothing is packed before `decisions`
        self.asks_for_notice: Callable[[], bool] = _no_notice
        self._awaited: dict[Bucket, int] = {}
        self._held_up_since: float | None = None
        self._arrivals = 0
        self._edits = Watch()
        # Whether a backward pass has begun and not ended; and the pass itself, which dies with an exception, too.
        self._unfinished, self._pass = False, _no_pass
        self._kept = 0
        self._lock = threading.RLock()  # backward has a thread for each device
        self.add(buckets)
        progress.add(self)

    def add(self, buckets: list[Bucket]):
        """Takes in buckets of further parameters, which have votes from now on. Their names must be new."""
        super().add(buckets)
        for bucket in buckets:
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

    @property
    def started(self) -> bool:
        """Whether gradients have been packed, or votes are on their way."""
        return bool(self._arrivals or self._given > self._kept)

    @property
    def untouched(self) -> bool:
        """Whether no backward pass has reached a parameter since the last step."""
        return all(slot.passes_left == self.passes for slot in self.slots)

    def edited(self) -> bool:
        """Whether gradients were changed after they had been packed in backward. Asked in each step; says so once."""
        return self._edits.finds_change(self.slots)

    def reset(self):
        """Expects the gradients of a new step. Only when no vote is on its way."""
        super().reset()
        self._arrivals, self._kept, self._unfinished = 0, 0, False
        for slot in self.slots:
            slot.passes_left, slot.seen = self.passes, None
        self._awaited = {bucket: len(bucket.slots) for bucket in self._buckets}
        self._held_up_since = None

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
            if self._error is None and not self._unstarted and not self.carries_late_notices:
                raise
            self._error, self.notice = error, True

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

    def _gradient_ready(self, slot: Slot, p: torch.Tensor):
        with self._lock:
            self._take_gradient(slot)

    def _take_gradient(self, slot: Slot):
        slot.passes_left -= 1
        if not self.in_backward:  # the vote will be on what is there in `step`
            return
        if self._pass() is None:
            with progress.undisturbed():
                self._begin_pass(slot)
        if slot.passes_left < 0:
            raise AssertionError(
                f"gradients were computed more than backward_passes_per_step={self.passes} times before step(): call "
                f"step() after that many backward passes, or raise backward_passes_per_step. {OTHER_LOSS}"
            )
        if slot.passes_left > 0:
            return
        bucket = slot.bucket
        due = not self.packs_in_backward or bucket.arrived(slot)
        self._arrivals += 1
        self._awaited[bucket] -= 1
        full = self._awaited[bucket] == 0 and not self._collectives.ordered
        if due or full:  # where gradients are packed, asking the engine after each would cost more than it gains
            with progress.undisturbed():
                self._take_in(bucket, full)

    def _take_in(self, bucket: Bucket, full: bool):
        """Packs what has arrived in a bucket, starts its vote if that is all, and goes on with all votes."""
        packed = bucket.slots
        if self.packs_in_backward:
            packed = bucket.pack_waiting(self._abstain)
        if full:
            self._start(bucket)
        if full or self.packs_in_backward:
            self._note(packed)
        self._go_on(start=False)

    def _note(self, packed: list[Slot]):
        # What cannot be read cannot be compared.
        if self._error is None and all(slot.bucket.error is None for slot in packed):
            self._watch(packed)

    def _watch(self, packed: list[Slot]):
        """Has changes of these gradients noticed from now on."""
        self._edits.note(packed)

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
