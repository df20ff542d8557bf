"""Votes by MPI itself (mpi4py), past Horovod's engine: for small models, where its milliseconds are most of a step.

The engine takes a millisecond or more for an op, however little it carries, since a thread of its own first agrees with
all ranks on what is ready. MPI takes microseconds, but its collectives must come in the same order on all ranks: in
`step`, never in the hooks of backward.
"""

import os
import time

import horovod.torch as hvd
import numpy as np
import torch

from horovod_sign.voting.library import usable_mpi
from horovod_sign.voting.mpi import MpiCollectives

# Seconds to wait for other ranks before asking Horovod whether they have joined. It costs nothing until then.
PATIENCE = 10.0
_ASKING = 1 << 62  # in a length: its sender has asked
_JOINED = (
    "a rank has called hvd.join(), and the other ranks wait for its vote: with uneven data, give "
    'hvs.DistributedOptimizer transport="counts", in which joined ranks abstain'
)


def available(process_set) -> bool:
    """Whether mpi4py reaches the ranks of `process_set`, by the MPI library that Horovod uses, from any thread."""
    if not hvd.mpi_enabled() or process_set.size() != hvd.size():
        return False
    MPI = usable_mpi()
    if MPI is None or not MPI.Is_initialized() or MPI.Query_thread() != MPI.THREAD_MULTIPLE:
        return False
    return (MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size) == (hvd.rank(), hvd.size())


class DirectCollectives(MpiCollectives):
    """`voting.collectives.Collectives` on a communicator of its own. A collective: all ranks make it.

    A rank in `hvd.join()` never comes to a collective of MPI's. So a rank that has waited for long asks by an allreduce
    of Horovod's, to which joined ranks contribute nothing; and if the others were only late, it tells them that it has
    asked, with the next lengths, so that they answer.

    Args:
        name: of the Horovod op that asks: unique among optimizers, the same on all ranks.
    """

    def __init__(self, name: str):
        super().__init__(usable_mpi().COMM_WORLD.Dup())
        self._name, self._question = f"{name}.present", None

    def _tell_each(self, lengths):
        incoming = np.empty_like(lengths)
        self._wait(self._comm.Ialltoall(self._marked(lengths), incoming))
        return self._answer(incoming)

    def _tell_all(self, length):
        incoming = np.empty(self.size, np.int64)
        self._wait(self._comm.Iallgather(self._marked(np.array([length], np.int64)), incoming))
        return self._answer(incoming)

    def _marked(self, lengths):
        return lengths if self._question is None else lengths | _ASKING

    def _wait(self, request):
        start = time.monotonic()
        while not request.Test():
            waited = time.monotonic() - start
            if waited > PATIENCE:
                self._ask()
                if hvd.poll(self._question):
                    self._conclude()
                    start = time.monotonic()
            if waited > 0.1:
                time.sleep(1e-3)
            else:
                os.sched_yield()  # other ranks may wait for this processor; to sleep takes 60 microseconds at least

    def _ask(self):
        if self._question is None:
            self._question = hvd.allreduce_async(torch.ones(1), name=self._name, op=hvd.Sum)

    def _answer(self, incoming):
        if (incoming & _ASKING).any():  # all ranks see the same
            self._ask()
            self._conclude()
        return incoming & ~_ASKING

    def _conclude(self):
        present, self._question = int(hvd.synchronize(self._question)), None
        if present < self.size:
            raise RuntimeError(_JOINED)
