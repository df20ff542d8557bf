"""The three collectives of a vote by Horovod's engine, in the background; the handle is Horovod's."""

import time
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch
from horovod.common.exceptions import HorovodInternalError

from horovod_sign.voting.collectives import Allgather, Alltoall, Request


class HorovodCollectives:
    """`voting.collectives.Collectives` by Horovod for PyTorch, within a process set. Every op is named."""

    ordered = False

    def __init__(self, process_set: Any = hvd.global_process_set) -> None:
        self._process_set = process_set
        self.rank, self.size = process_set.rank(), process_set.size()

    def start(self, request: Request, name: str) -> int:
        if isinstance(request, Alltoall):
            lengths = torch.tensor(request.lengths, dtype=torch.int32, device="cpu")
            return hvd.alltoall_async(self._tensor(request.buffer), lengths, name, self._process_set)
        if isinstance(request, Allgather):
            return hvd.allgather_async(self._tensor(request.buffer), name, self._process_set)
        words = torch.from_numpy(request.words)
        return hvd.allreduce_async_(words, name=name, op=hvd.Sum, process_set=self._process_set)

    def done(self, handle: int) -> bool:
        return hvd.poll(handle)

    def finish(self, handle: int) -> np.ndarray:
        return self._finished(handle).numpy()

    _tensor = staticmethod(torch.from_numpy)

    def _finished(self, handle: int) -> torch.Tensor:
        try:
            output = hvd.synchronize(handle)
        except HorovodInternalError as error:
            if "Join" not in str(error):
                raise  # elastic Horovod catches it
            raise RuntimeError(
                "a rank has called hvd.join(), and the exchange needs all ranks: with uneven data, give "
                'hvs.DistributedOptimizer transport="counts", in which joined ranks abstain'
            ) from error
        return output[0] if isinstance(output, tuple) else output

    def idle(self) -> None:
        time.sleep(50e-6)


class DeviceCollectives(HorovodCollectives):
    """The same on tensors, which stay on their device if Horovod has operations there (NCCL's)."""

    def finish(self, handle: int) -> torch.Tensor:
        """As of `HorovodCollectives`."""
        output = self._finished(handle)
        if output.is_cuda:  # its memory is of another stream, on which it would be used again too early
            output.record_stream(torch.cuda.current_stream(output.device))
        return output

    @staticmethod
    def _tensor(buffer: torch.Tensor) -> torch.Tensor:
        return buffer
