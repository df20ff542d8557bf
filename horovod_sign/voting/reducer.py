"""Which buckets of a step wait, which are being packed, and whose votes are under way: from their start to their end.

A *bucket* is what is voted on together, by one ballot of each rank. It waits until it is started; then its ballot is
packed, by a device perhaps, while the host goes on; then its vote is under way, until it is decided. What carries votes
may hold many at once, which every rank may start in an order of its own; or it is `ordered`: then all ranks start the
next vote when the one before is decided.
"""

import contextlib
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol

from horovod_sign.voting import progress
from horovod_sign.voting.choice import choose
from horovod_sign.voting.collectives import Collectives
from horovod_sign.voting.messages import Memory, Notices, Planes
from horovod_sign.voting.protocols import PROTOCOLS, Vote


class Bucket(Protocol):
    """What is voted on together.

    Attributes:
        name: unique among those of a reducer, the same on all ranks.
        coordinates: how many are voted on.
        error: why not all of it could be read, which then abstains.
        packed: whether `collect` would return without waiting.
    """

    name: str
    coordinates: int
    error: Exception | None

    @property
    def packed(self) -> bool: ...

    def launch(self, abstain: bool) -> Any:
        """Asks for the ballot to be packed; `abstain`: zeros and NaN are 0, not +1."""

    def collect(self) -> Planes:
        """This rank's ballot, after `launch`."""

    def forget(self) -> None:
        """Expects the gradients of a new step."""


class Everybody:
    """Who takes part in a step, where votes themselves fail if a rank is missing, and their ballots carry notices."""

    known, notices = True, 0

    def check(self, wait: bool = False) -> None:
        """Raises RuntimeError if a rank does not take part, as far as that is known without waiting."""


class Reducer:
    """The votes of one optimizer or model, step after step.

    Args:
        collectives: what carries them.
        transport: "exchange", "counts", or "auto": for each bucket what costs least.
        abstain: whether zeros, NaN and ties are 0 or +1.
        name: unique among reducers, the same on all ranks.

    Attributes:
        bytes_sent: by this rank to others in the last step.
        silent: True: this rank abstains in this step, even where `abstain` is False.
        notice, noticed: whether ballots carry a notice to all ranks; and whether one of this step did, on any rank.
    """

    def __init__(self, collectives: Collectives, transport: str, abstain: bool, name: str) -> None:
        self.name, self.bytes_sent = name, 0
        self.silent, self.notice, self.noticed = False, False, False
        self._collectives, self._transport, self._abstain = collectives, transport, abstain
        self._buckets: list[Bucket] = []
        # A bucket is unstarted, then packing (on a device, perhaps), then has a vote.
        self._unstarted: list[Bucket] = []
        self._packing: list[Bucket] = []
        self._votes: dict[Bucket, Vote] = {}
        self._notices: dict[Bucket, Notices] = {}
        self._memory: weakref.WeakKeyDictionary[Bucket, Memory] = weakref.WeakKeyDictionary()
        self._error: Exception | None = None

    def add(self, buckets: list[Bucket]) -> None:
        """Has votes on further buckets, from this step on."""
        self._buckets += buckets
        self._unstarted += buckets

    def restart(self, collectives: Collectives, name: str) -> None:
        """Forgets what is under way and goes on with other ranks, when the library that carries votes began anew."""
        self._votes.clear()
        self._packing.clear()
        self._collectives, self.name = collectives, name
        for bucket in self._buckets:
            bucket.forget()
        self.reset()

    def reset(self) -> None:
        """Expects the gradients of a new step. Only when no vote is on its way."""
        self._unstarted = list(self._buckets)
        self._notices.clear()
        self.silent, self.noticed = False, False

    @property
    def started(self) -> bool:
        """Whether votes are on their way."""
        return self._given > 0

    @property
    def _given(self) -> int:
        """Of how many buckets this rank's ballot is given, and nothing decided."""
        return len(self._packing) + len(self._votes)

    def raise_error(self) -> None:
        """Raises what kept this rank from voting or stepping, if something did."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def begin(self) -> None:
        """A step begins whose votes go one by one."""
        self.bytes_sent = 0

    def decide(self, bucket: Bucket, notice: bool) -> tuple[Planes, bool]:
        """A vote from its start to its end, where they go one by one. The ballot has been launched.

        Args:
            bucket: one that was never added.
            notice: whether the ballot carries a notice to all ranks.

        Returns:
            The decision, and whether the ballot of any rank carried a notice.
        """
        self.notice = notice
        vote = self._vote_on(bucket)
        decided = vote.wait()
        self.bytes_sent += vote.bytes_sent
        return decided, self._notices.pop(bucket).found

    def decisions(self) -> Iterator[tuple[Bucket, Planes]]:
        """Ends the step: starts the votes that wait for gradients that do not come, and yields each as it is decided.

        A parameter without a gradient abstains.
        """
        self.bytes_sent, self.noticed = 0, False
        for bucket in self._buckets:
            self._tell_of_error(bucket)
        present = self._attend()
        while self._unstarted or self._given:
            # Every vote goes on before the next decision is worked on, so that none waits for that work.
            self._go_on()
            decided = next((bucket for bucket in self._buckets if self._is_decided(bucket)), None)
            present.check()
            if not present.known:  # nothing moves before
                decided = None
            if decided is None:
                progress.go_on()
                self._collectives.idle()
                continue
            vote = self._votes.pop(decided)
            self.bytes_sent += vote.bytes_sent
            self.noticed |= decided in self._notices and self._notices[decided].found
            self.noticed |= present.notices > 0
            yield decided, vote.wait()
        noticed = self.noticed
        present.check(wait=True)
        noticed |= present.notices > 0
        self.reset()
        self.noticed = noticed

    def conclude(self, seconds: float) -> None:
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

    def _go_on(self, start: bool = True) -> None:
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

    def _start(self, bucket: Bucket) -> None:
        """Packs a bucket, and starts its vote once it is packed: at once, unless a device does that meanwhile."""
        self._launch(bucket)
        self._unstarted.remove(bucket)
        self._packing.append(bucket)
        self._vote_on_packed()

    def _vote_on_packed(self) -> None:
        for bucket in [bucket for bucket in self._packing if bucket.packed]:
            running = self._running(bucket)
            self._packing.remove(bucket)
            self._votes[bucket] = self._vote(bucket, running)

    def _vote_on(self, bucket: Bucket) -> Vote:
        return self._vote(bucket, self._running(bucket))

    def _vote(self, bucket: Bucket, running: Generator[Any, Any, Any]) -> Vote:
        return Vote(running, self._collectives, f"{self.name}.{bucket.name}")

    def _attend(self) -> Everybody:
        """A step ends: finds out who takes part in it."""
        return Everybody()

    def _launch(self, bucket: Bucket) -> None:
        bucket.launch(self._abstain or self.silent)

    def _running(self, bucket: Bucket) -> Generator[Any, Any, Any]:
        """The protocol of a vote on a bucket whose ballot is packed."""
        ballot = bucket.collect()
        self._tell_of_error(bucket)
        ops = self._notices[bucket] = Notices(self.notice, self._memory.setdefault(bucket, Memory()))
        rank, size = self._collectives.rank, self._collectives.size
        return self._protocol_of(bucket)(ballot, rank, size, abstain=self._abstain, ops=ops)

    def _protocol_of(self, bucket: Bucket) -> Callable[..., Generator[Any, Any, Any]]:
        way, size = self._transport, self._collectives.size
        return PROTOCOLS[choose(bucket.coordinates, size, self._abstain, can_go_direct=False) if way == "auto" else way]

    def _tell_of_error(self, bucket: Bucket) -> None:
        """What a bucket could not read, all ranks hear of by the next ballot, or the next step of votes of nodes."""
        if bucket.error is not None:
            self._error, self.notice, bucket.error = bucket.error, True, None
