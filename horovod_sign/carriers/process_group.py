"""The three collectives of a vote by a process group of torch.distributed."""

import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from horovod_sign.voting.collectives import Allgather, Alltoall, AtOnce, Request


class ProcessGroupCollectives(AtOnce):
    """`voting.collectives.Collectives` over a process group.

    A process group pairs what ranks ask of it by its order alone, so whatever else uses the same group must come in the
    same order on all ranks: a group of one's own is best.

    Gloo carries the bits from where they are. A backend that only knows a device (NCCL) is given copies on that device.

    Args:
        group: the process group; this rank is in it.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group, self._device = group, device_of(group)
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def start(self, request: Request, name: str) -> np.ndarray:
        if isinstance(request, Alltoall):
            return self._alltoall(request.buffer, request.lengths)
        if isinstance(request, Allgather):
            # Lengths differ between ranks, which an allgather of torch.distributed's does not allow.
            return self._alltoall(np.tile(request.buffer, self.size), [len(request.buffer)] * self.size)
        words = self._there(request.words)
        dist.all_reduce(words, group=self._group)
        return words.cpu().numpy()

    def _alltoall(self, buffer: np.ndarray, lengths: list[int]) -> np.ndarray:
        incoming = self._tell_each(lengths)
        received = torch.empty(sum(incoming), dtype=torch.uint8, device=self._device)
        dist.all_to_all_single(received, self._there(buffer), incoming, lengths, group=self._group)
        return received.cpu().numpy()

    def _tell_each(self, lengths: list[int]) -> list[int]:
        """Tells each rank its length; returns what each has for this one."""
        incoming = torch.empty(self.size, dtype=torch.int64, device=self._device)
        dist.all_to_all_single(incoming, self._there(np.array(lengths, np.int64)), group=self._group)
        return incoming.tolist()

    def _there(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)


class DeviceGroupCollectives(AtOnce):
    """`voting.collectives.Collectives` on tensors, of lengths that all ranks know, over a process group.

    NCCL carries them out in the order of the current stream, and the host goes on; Gloo is waited for.

    Args:
        group: the process group, of one's own.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def start(self, request: Request, name: str) -> torch.Tensor:
        buffer: Any = request[0]  # a tensor
        if isinstance(request, Alltoall):
            received = torch.empty_like(buffer)
            dist.all_to_all_single(received, buffer, group=self._group)
        else:
            received = buffer.new_empty(self.size * len(buffer))
            dist.all_gather_into_tensor(received, buffer, group=self._group)
        return received

    def idle(self) -> None:
        time.sleep(50e-6)  # until all ranks have said that they take part


def device_of(group: dist.ProcessGroup) -> torch.device:
    """Where a group wants what it carries: on the CPU if it can, else on this process's device of its kind."""
    kinds = [each.split(":")[0] for each in dist.get_backend_config(group).split(",")]
    if "cpu" in kinds:
        return torch.device("cpu")
    return torch.device(kinds[0], torch.get_device_module(kinds[0]).current_device())
