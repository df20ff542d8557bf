"""Votes by MPI itself (mpi4py), past Horovod's engine: for small models, where its milliseconds are most of a step.

The engine takes a millisecond or more for an op, however little it carries, since a thread of its own first agrees with
all ranks on what is ready. MPI takes microseconds, but its collectives must come in the same order on all ranks: those
of one optimizer have a communicator of their own, and start in `step`, never in the hooks of backward.

Nothing here blocks inside MPI: other optimizers' votes go on meanwhile, an interrupt gets through, and when Horovod
ends MPI in a thread of its own, which it does as soon as one rank ends, that thread waits until no call is under way.
"""

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator
from typing import Any, cast

import horovod.torch as hvd
import numpy as np
import torch
from horovod.common.exceptions import HorovodInternalError

from horovod_sign.voting.collectives import Allgather, Alltoall, Request
from horovod_sign.voting.library import mpi_beside, usable_mpi

# Seconds to wait for other ranks before asking Horovod whether they have joined. It costs nothing until then.
ASKS_AFTER = 2.0
_MANY = 32  # communicators, each of which takes MPI some 180 kB
_ASKING = 1 << 62  # in a length: its sender has asked
_JOINED = (
    "a rank has called hvd.join(), and the other ranks wait for its vote: with uneven data, give "
    'hvs.DistributedOptimizer transport="counts", in which joined ranks abstain'
)
_ENDED = (
    "Horovod has been shut down. A rank has ended, or has called hvd.shutdown(), while this one still votes: its data "
    "may be shorter, or see the exception in its log"
)


def available(process_set: Any) -> bool:
    """Whether mpi4py reaches the ranks of `process_set`, by the MPI library that Horovod uses, from any thread."""
    return process_set.size() == hvd.size() and not _lifetime.ended and mpi_beside(hvd) is not None


class _Lifetime:
    """Of MPI: who calls it holds `lock`, and it is not finalized meanwhile.

    MPI_Finalize first calls what is attached to MPI_COMM_SELF, whichever thread calls it.
    """

    def __init__(self) -> None:
        self.lock, self.ended = threading.Lock(), False
        self.unfinished: list[Any] = []  # nobody waits for these, but MPI may still write to their buffers
        self._key = None

    def watch(self) -> None:
        """Has MPI tell when it is about to end."""
        if self._key is None:
            MPI = usable_mpi()
            self._key = MPI.Comm.Create_keyval(delete_fn=self._end)
            MPI.COMM_SELF.Set_attr(self._key, self)

    def _end(self, *_: object) -> None:
        self.ended = True
        with self.lock:
            pass

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function of MPI's that does not block."""
        with self.lock:
            if self.ended:
                raise HorovodInternalError(_ENDED)
            return function(*arguments)


_lifetime = _Lifetime()


class _Communicators:
    """Duplicates of the communicator of all ranks. Those of optimizers that are no more are used again.

    All ranks make all of them together, so that they have the same number on all.
    """

    def __init__(self) -> None:
        self._made: list[Any] = []
        self._free: list[int] = []

    def free(self) -> list[int]:
        """For each, whether it is free here."""
        if len(self._free) >= _MANY and sum(self._free) < len(self._free) / 8:
            gc.collect()  # optimizers are in cycles, and of what lives long the collector comes to look very rarely
        return self._free

    def take(self, free_everywhere: list[int]) -> tuple[Any, int]:
        """One, and its number. A collective.

        Args:
            free_everywhere: for each, whether it is free on all ranks.
        """
        _lifetime.watch()
        if 1 not in free_everywhere:
            self._made.append(usable_mpi().COMM_WORLD.Dup())
            self._free.append(0)
        number = free_everywhere.index(1) if 1 in free_everywhere else len(self._made) - 1
        self._free[number] = 0
        return self._made[number], number

    def give_back(self, number: int, unfinished: list) -> None:
        """Its optimizer is no more."""
        if unfinished:  # other ranks' requests may still wait for ours
            _lifetime.unfinished += unfinished
        else:
            self._free[number] = 1


communicators = _Communicators()


class _UnderWay:
    """A request that is being carried out."""

    def __init__(self, steps: Generator[Any, None, np.ndarray]) -> None:
        self.steps = steps
        self.mpi_request, self.result = next(steps), cast(np.ndarray, None)  # until it is done


class DirectCollectives:
    """`voting.collectives.Collectives` on a communicator of its own. A collective: all ranks make it.

    A rank in `hvd.join()` never comes to a collective of MPI's. So a rank that has waited for long asks by an allreduce
    of Horovod's, to which joined ranks contribute nothing; and if the others were only late, it tells them that it has
    asked, with the next lengths, so that they answer. A question has the number of the lengths told last, which all
    ranks count alike: two may be open, when ranks that were held up go on one after the other.

    Args:
        name: of the Horovod op that asks: unique among optimizers, the same on all ranks.
        free_everywhere: of `communicators`.
    """

    ordered = True

    def __init__(self, name: str, free_everywhere: list[int]) -> None:
        self._comm, number = communicators.take(free_everywhere)
        self.rank, self.size = self._comm.rank, self._comm.size
        self._name = f"{name}.present"
        self._lengths_told = 0
        self._questions: dict[int, Any] = {}
        self._since = time.monotonic()
        self._unfinished: list[_UnderWay] = []
        weakref.finalize(self, communicators.give_back, number, self._unfinished).atexit = False

    def start(self, request: Request, name: str) -> _UnderWay:
        if isinstance(request, Alltoall):
            steps = self._alltoall(request.buffer, np.array(request.lengths, np.int64))
        elif isinstance(request, Allgather):
            steps = self._allgather(request.buffer)
        else:
            raise NotImplementedError("votes by MPI itself are exchanges")
        handle = _UnderWay(steps)
        self._unfinished.append(handle)
        self._since = time.monotonic()
        return handle

    def done(self, handle: _UnderWay) -> bool:
        while handle.mpi_request is not None:
            if not _lifetime.call(handle.mpi_request.Test):
                return False
            try:
                handle.mpi_request = next(handle.steps)
            except StopIteration as stop:
                handle.mpi_request, handle.result = None, stop.value
                self._unfinished.remove(handle)
            self._since = time.monotonic()
        return True

    def finish(self, handle: _UnderWay) -> np.ndarray:
        while not self.done(handle):
            self.idle()
        return handle.result

    def idle(self) -> None:
        waited = time.monotonic() - self._since
        if waited > ASKS_AFTER:
            self._ask(self._lengths_told)
            if self._may_conclude(self._lengths_told):
                self._conclude(self._lengths_told)
                self._since = time.monotonic()
        if waited > 0.1:
            time.sleep(1e-3)
        else:
            os.sched_yield()  # other ranks may wait for this processor; to sleep takes 60 microseconds at least

    def _alltoall(self, buffer: np.ndarray, lengths: np.ndarray) -> Generator[Any, None, np.ndarray]:
        incoming = np.empty_like(lengths)
        told = self._marked(lengths)
        yield _lifetime.call(self._comm.Ialltoall, told, incoming)
        incoming = self._told(incoming)
        received = np.empty(incoming.sum(), np.uint8)
        yield _lifetime.call(self._comm.Ialltoallv, [buffer, lengths], [received, incoming])
        return received

    def _allgather(self, buffer: np.ndarray) -> Generator[Any, None, np.ndarray]:
        incoming = np.empty(self.size, np.int64)
        told = self._marked(np.array([len(buffer)], np.int64))
        yield _lifetime.call(self._comm.Iallgather, told, incoming)
        incoming = self._told(incoming)
        received = np.empty(incoming.sum(), np.uint8)
        yield _lifetime.call(self._comm.Iallgatherv, buffer, [received, incoming])
        return received

    def _marked(self, lengths: np.ndarray) -> np.ndarray:
        """Lengths that also tell whether this rank has asked since it told the last ones."""
        asked = self._lengths_told in self._questions
        self._lengths_told += 1
        return lengths | _ASKING if asked else lengths

    def _told(self, incoming: np.ndarray) -> np.ndarray:
        """The lengths of all. If a rank has asked before it told its own, all answer, since all are here."""
        before = self._lengths_told - 1
        if (incoming & _ASKING).any():  # all ranks see the same
            self._ask(before)
            self._conclude(before)
        self._questions.pop(before, None)
        return incoming & ~_ASKING

    def _ask(self, number: int) -> None:
        if number not in self._questions:
            name = f"{self._name}.{number}"
            mine = torch.ones(1, dtype=torch.float32, device="cpu")
            self._questions[number] = hvd.allreduce_async(mine, name=name, op=hvd.Sum)

    def _may_conclude(self, number: int) -> bool:
        handle = self._questions[number]
        return handle is not None and hvd.poll(handle)

    def _conclude(self, number: int) -> None:
        handle, self._questions[number] = self._questions[number], None
        if handle is not None and int(hvd.synchronize(handle)) < self.size:
            raise RuntimeError(_JOINED)
