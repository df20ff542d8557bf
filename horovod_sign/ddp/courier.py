"""Carries votes beside backward: in a thread, one after the other, over a process group that nothing else uses.

A vote is several collectives, and what comes second depends on what came first. If each bucket went on by itself as its
futures complete, ranks would start them in different orders, and a process group pairs them by order alone. So the
votes of a model go one by one, in the order of its buckets, which is the same on all ranks.
"""

import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from horovod_sign.carriers.process_group import ProcessGroupCollectives
from horovod_sign.voting.collectives import Allgather


class Courier:
    """Made by all ranks of a group alike. The thread ends with it.

    Attributes:
        collectives: of the group of its own.

    Args:
        group: the ranks that vote.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.collectives = ProcessGroupCollectives(_another(group))
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=_work, args=(self._jobs,), name="horovod_sign.ddp", daemon=True).start()
        weakref.finalize(self, self._jobs.put, None)

    @property
    def rank(self) -> int:
        """Of this process among those that vote."""
        return self.collectives.rank

    @property
    def size(self) -> int:
        """How many vote."""
        return self.collectives.size

    def carry(self, job: Callable[[], Any], device: torch.device) -> torch.futures.Future:
        """Has `job` done after those before it; the future is complete when it is.

        Args:
            job: what to do. It must raise nothing.
            device: of the tensors that it works on.
        """
        future = torch.futures.Future() if device.type == "cpu" else torch.futures.Future(devices=[device])
        self._jobs.put((job, future))
        return future


def _another(group: dist.ProcessGroup) -> dist.ProcessGroup:
    """Another group of the same ranks and backend; the same where a rank is alone."""
    ranks = dist.get_process_group_ranks(group)
    alike = {"backend": dist.get_backend_config(group)}
    if len(ranks) == 1:
        return group
    if len(ranks) == dist.get_world_size():
        return dist.new_group(ranks, **alike)
    # The other ranks may not know of it. torch then names a group by how many its rank is in, which must be the same.
    collectives, here = ProcessGroupCollectives(group), dist.distributed_c10d._world.pg_names
    most = collectives.start(Allgather(np.array([len(here)]).view(np.uint8)), "groups").view(np.int64).max()
    while len(here) < most:
        dist.new_group([dist.get_rank()], use_local_synchronization=True, backend="gloo")
    return dist.new_group(ranks, use_local_synchronization=True, **alike)


def _work(jobs: queue.SimpleQueue) -> None:
    while (given := jobs.get()) is not None:
        job, future = given
        job()
        future.set_result(None)
        del given, job, future  # a tensor of a model that is no more would live on until the next
