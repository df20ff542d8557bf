"""A vote of all ranks by each transport, against NumPy: over MPI by mpi4py, or over whatever Horovod has."""

import sys
from typing import Any, NamedTuple

import numpy as np

from horovod_sign import algebra
from horovod_sign.voting.collectives import Allgather, Alltoall, Request
from horovod_sign.voting.messages import Planes
from horovod_sign.voting.mpi import majority_vote
from horovod_sign.voting.protocols import PROTOCOLS, Vote


class ByMPI:
    """Votes by `majority_vote` on a communicator of mpi4py."""

    def __init__(self, comm: Any) -> None:
        self.name, self.rank, self.size, self._comm = "MPI", comm.rank, comm.size, comm

    def vote(self, x: np.ndarray, abstain: bool, transport: str) -> np.ndarray:
        """The vote of all ranks on x."""
        return majority_vote(x, self._comm, abstain=abstain, transport=transport)

    def gather(self, mine: Any) -> list:
        """What each rank has. A collective."""
        return self._comm.allgather(mine)

    def failed_ranks(self, passed: bool) -> list[int]:
        """The ranks on which `passed` is not true. A collective."""
        return [rank for rank, good in enumerate(self._comm.allgather(passed)) if not good]


class ByHorovod:
    """Votes over Horovod, which is initialised here, by MPI or by Gloo.

    Args:
        hvd: Horovod for PyTorch or for TensorFlow.
    """

    def __init__(self, hvd: Any) -> None:
        if not hvd.is_initialized():
            hvd.init()
        self.name = "MPI, by Horovod" if hvd.mpi_enabled() else "Gloo"
        self.rank, self.size, self._hvd = hvd.rank(), hvd.size(), hvd
        self._tensor = sys.modules["torch"].from_numpy if hvd.__name__ == "horovod.torch" else np.asarray

    def vote(self, x: np.ndarray, abstain: bool, transport: str) -> np.ndarray:
        """The vote of all ranks on x."""
        sign, nonzero, _, _ = algebra.pack_ballot(x, abstain)
        protocol = PROTOCOLS[transport](Planes(sign, nonzero), self.rank, self.size, abstain=abstain)
        name = f"horovod_sign.selftest.{transport}.{abstain}"
        decided = Vote(protocol, self, name).wait()  # type: ignore[arg-type]  # which neither polls nor idles
        return algebra.unpack_votes(decided.sign, decided.nonzero, x.size)

    def gather(self, mine: Any) -> list:
        """What each rank has. A collective."""
        return self._hvd.allgather_object(mine, name="horovod_sign.selftest.gathered")

    def failed_ranks(self, passed: bool) -> list[int]:
        """The ranks on which `passed` is not true. A collective."""
        mine = self._tensor(np.array([passed], np.uint8))
        return np.flatnonzero(self._hvd.allgather(mine, name="horovod_sign.selftest.passed").numpy() == 0).tolist()

    def start(self, request: Request, name: str) -> np.ndarray:
        """Carries a request out: see `voting.collectives.Collectives`."""
        if isinstance(request, Alltoall):
            lengths = self._tensor(np.array(request.lengths, np.int32))
            received = self._hvd.alltoall(self._tensor(request.buffer), lengths, name=name)
            return received[0].numpy() if isinstance(received, tuple | list) else received.numpy()
        if isinstance(request, Allgather):
            return self._hvd.allgather(self._tensor(request.buffer), name=name).numpy()
        return self._hvd.allreduce(self._tensor(request.words), name=name, op=self._hvd.Sum).numpy()

    def finish(self, handle: np.ndarray) -> np.ndarray:
        """The result of a request."""
        return handle


class Outcome(NamedTuple):
    """What came of a self-test: the ways to vote that were tried, and the ranks with a wrong vote."""

    tried: list[str]
    failed: list[int]


def run(ranks: ByMPI | ByHorovod) -> Outcome:
    """Votes by each transport, with and without abstentions. A collective."""
    tried, passed = [], True
    inputs = [_input(rank) for rank in range(ranks.size)]
    for transport in PROTOCOLS:
        for abstain in (True, False):
            signs = [np.sign(np.nan_to_num(x)) if abstain else np.where(x < 0, -1, 1) for x in inputs]
            total = np.sum(signs, axis=0)
            expected = np.sign(total) if abstain else np.where(total < 0, -1, 1)
            passed &= np.array_equal(ranks.vote(inputs[ranks.rank], abstain, transport), expected)
        tried.append(transport)
    return Outcome(tried, ranks.failed_ranks(bool(passed)))


def _input(rank: int) -> np.ndarray:
    random = np.random.default_rng(rank)
    x = random.standard_normal(100_003).astype(np.float32)
    x[random.random(len(x)) < 0.2] = random.choice(np.array([0.0, -0.0, np.nan, np.inf, -np.inf], np.float32))
    return x
