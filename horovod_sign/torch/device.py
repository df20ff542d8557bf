"""Votes that stay on a GPU: `transport="device"`, by Horovod for PyTorch or by torch.distributed beside it.

What the host reads of a vote comes too late to tell ranks of notices, and of who takes part. So ranks tell each other
that by a word of their hosts, an allreduce of Horovod's in each step, and nobody steps, or asks a process group for
anything, before all have.
"""

import functools
from collections.abc import Callable, Generator
from typing import Any

import horovod.torch as hvd
import torch
import torch.distributed as dist

from horovod_sign.carriers.process_group import DeviceGroupCollectives
from horovod_sign.tensors.resident import ResidentBucket
from horovod_sign.torch.collectives import DeviceCollectives
from horovod_sign.torch.pipeline import Pipeline
from horovod_sign.torch.presence import Presence
from horovod_sign.voting.collectives import Collectives
from horovod_sign.voting.protocols import TRANSPORTS
from horovod_sign.voting.reducer import Bucket

ALL_TRANSPORTS = (*TRANSPORTS, "device")

_JOINED = (
    'a rank has called hvd.join(), and transport="device" needs all ranks: with uneven data, give '
    'hvs.DistributedOptimizer transport="counts", in which joined ranks abstain'
)
_OTHER_ORDER = (
    'ranks step their optimizers in different orders, and votes of transport="device" by a process group of '
    "torch.distributed come in one order on all ranks: step them alike, or leave transport as it is"
)
_NO_NCCL = (
    'transport="device" needs NCCL on all ranks: make a process group of the same ranks before the optimizer is '
    'wrapped (torch.distributed.init_process_group("nccl", rank=hvd.rank(), world_size=hvd.size(), ...)), or build '
    "Horovod with HOROVOD_GPU_OPERATIONS=NCCL; or leave transport as it is, by which bits go through the host"
)


def carrier(process_set: Any, device: torch.device, name: str) -> Collectives:
    """What carries votes of tensors on a device, the same on all ranks. A collective.

    That is a process group of torch.distributed if the script has made one of the same ranks, since then the host waits
    for nothing that it carries; else Horovod's own operations.

    Args:
        process_set: Horovod's, of the ranks that vote.
        device: of the tensors.
        name: unique among optimizers, the same on all ranks.

    Raises:
        ValueError: there is neither, on all ranks.
    """
    by_horovod = device.type != "cuda" or bool(hvd.nccl_built())
    able = torch.tensor([_has_group(process_set, device), by_horovod], dtype=torch.int32, device="cpu")
    able = hvd.allreduce(able, name=f"{name}.able", op=hvd.Min, process_set=process_set).tolist()
    if able[0]:
        return DeviceGroupCollectives(dist.new_group())
    if able[1]:
        return DeviceCollectives(process_set)
    raise ValueError(_NO_NCCL)


def _has_group(process_set: Any, device: torch.device) -> bool:
    """Whether torch.distributed has a process group of these ranks that carries tensors of a device."""
    if not (dist.is_available() and dist.is_initialized()) or process_set.size() != hvd.size():
        return False
    backends = dist.get_backend_config(dist.group.WORLD)
    carried = {"cuda": "cuda:nccl", "cpu": "cpu:gloo"}.get(device.type, "none")
    return (dist.get_rank(), dist.get_world_size()) == (hvd.rank(), hvd.size()) and carried in backends.split(",")


class Word(Presence):
    """Presence that also tells whether all ranks step the same optimizer.

    Args:
        name, notice, process_set: as of `Presence`.
        number: of the optimizer that steps.
    """

    def __init__(self, name: str, number: int, notice: bool, process_set: Any) -> None:
        super().__init__(name, notice, _JOINED, process_set, (number, number**2))

    def _other_failure(self, sums: list[float]) -> str:
        total, squares = sums
        return "" if self._ranks * squares == total**2 else _OTHER_ORDER  # numbers are alike if they have no variance


class DevicePipeline(Pipeline):
    """The votes of one optimizer that stay on a device.

    Args:
        process_set: Horovod's, of the ranks that vote.
        pipeline: as of `Pipeline`; the buckets are `ResidentBucket`s, and the collectives carry tensors.
    """

    def __init__(self, process_set: Any, *pipeline: Any) -> None:
        self._process_set = process_set
        self._present: Word | None = None
        self._launched: set[Bucket] = set()
        super().__init__(*pipeline)

    @property
    def carries_late_notices(self) -> bool:  # type: ignore[override]
        """Also those that come when all ballots are under way, until all ranks have been told what there was."""
        return self._present is None

    def reset(self) -> None:
        """As of `Pipeline`."""
        super().reset()
        self._present = None
        self._launched.clear()

    def conclude(self, seconds: float) -> None:
        """As of `Pipeline`; where a rank has joined, there are no votes."""
        if self._collectives.ordered and self._present is not None and self._present.failure:
            for bucket in self._buckets:
                bucket.forget()
            self.reset()
            return
        super().conclude(seconds)

    def poll(self) -> None:
        """As of `Pipeline`."""
        if not self._collectives.ordered:  # else votes start in `step` alone, in one order on all ranks
            super().poll()

    def _attend(self) -> Word:
        """What cannot be packed is known before the word of this step, which tells it."""
        if self._present is None:
            for bucket in self._unstarted:
                self._launch(bucket)
                self._launched.add(bucket)
                self._tell_of_error(bucket)
            # A process group has one order for all optimizers: whichever ranks step, they hear of each other.
            job, _, number = self.name.rpartition(".")
            name = f"{job if self._collectives.ordered else self.name}.present"
            self._present = Word(name, int(number), self.notice, self._process_set)
        return self._present

    def _go_on(self, start: bool = True) -> None:
        if start or (self._votes and not self._unstarted):
            present = self._attend()
            if self._collectives.ordered:  # votes that others do not start would never end
                present.check()
                start &= present.known
        super()._go_on(start)

    def _launch(self, bucket: Bucket) -> None:
        if bucket in self._launched:
            self._launched.remove(bucket)
        else:
            super()._launch(bucket)

    def _running(self, bucket: Any) -> Generator[Any, Any, Any]:
        there = bucket.collect()
        self._tell_of_error(bucket)
        return there.exchange(abstain=self._abstain)


def parts(process_set: Any, size: int) -> tuple[Callable[..., DevicePipeline], Callable[..., ResidentBucket]]:
    """What makes the pipeline and the buckets of votes that stay on a device.

    Args:
        process_set: Horovod's, of the ranks that vote.
        size: how many they are.
    """
    return functools.partial(DevicePipeline, process_set), functools.partial(ResidentBucket, size=size)
