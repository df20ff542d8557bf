"""Votes over MPI by mpi4py: `majority_vote`."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from horovod_sign import algebra
from horovod_sign.launched import warn_if_alone
from horovod_sign.voting.collectives import Allgather, Alltoall, AtOnce, Request
from horovod_sign.voting.handshake import agree, argument
from horovod_sign.voting.inputs import as_array
from horovod_sign.voting.library import load_mpi
from horovod_sign.voting.messages import Planes
from horovod_sign.voting.protocols import PROTOCOLS, Vote, check_transport

if TYPE_CHECKING:
    import torch
    from mpi4py import MPI

# Coordinates per vote; longer arrays are voted on piece by piece. At 16-bit counts a piece is 512 MB, well below the
# 2**31 bytes that an MPI count can address, and the packed buffers stay small beside the array.
PIECE = 2**28


def majority_vote(
    x: "ArrayLike | torch.Tensor", comm: "MPI.Intracomm | None" = None, *, abstain: bool = True, transport: str = "auto"
) -> np.ndarray:
    """The majority vote of all ranks on the signs of `x`, coordinate by coordinate.

        vote = sign(sum over ranks m of sign(x_m)),    sign(x) in {-1, 0, +1}

    Zeros of either sign and NaN abstain (count 0), infinities have their sign, a tie is 0 (Bernstein et al. 2018,
    arXiv 1802.04434, Algorithm 3). With `abstain=False` the pure one-bit vote of the ICLR 2019 paper's code (arXiv
    1810.05291): zeros, NaN and ties all count as +1.

    A collective: every rank of `comm` calls it with an array of the same shape and dtype and the same options.

    Args:
        x: float16, bfloat16, float32 or float64 array of any shape, empty included, or a dense PyTorch tensor of these.
            Masked entries of a masked array abstain, as NaN does.
        comm: mpi4py intracommunicator; default `MPI.COMM_WORLD`.
        abstain: whether zeros, NaN and ties are 0 (True) or +1 (False).
        transport: "exchange" (packed bits: about n/8 bytes sent in each of two phases, whatever the number of ranks),
            "counts" (an integer allreduce, 2 to 16 bits a coordinate) or "auto", which is the exchange.

    Returns:
        int8 array of x's shape, the same on all ranks.

    Raises:
        TypeError: x is not of a floating dtype that has a kernel, on some rank.
        ValueError: x cannot be read, on some rank; ranks differ in shape, dtype or options; unknown transport; more
            than 32,767 ranks for "counts". Either is raised by all ranks alike, before anything is sent.
        ImportError: mpi4py is not installed, finds no MPI, or would load another one than this process has.
    """
    comm = _communicator(comm)
    items, error = [], None
    try:
        x = as_array(x)
        shape = x.shape
        _check(x, abstain, transport, comm.size)
        flat, vote = x.reshape(-1), np.empty(x.size, np.int8)  # which may be too much for this rank's memory
        items = [("shape", str(x.shape)), ("dtype", x.dtype.name)]
        items += [argument("abstain", bool(abstain)), argument("transport", transport)]
    except Exception as invalid:  # of any kind: the other ranks are about to wait for this one
        error = invalid
    collectives = MpiCollectives(comm)
    Vote(agree("majority_vote", items, error, comm.size), collectives, "majority_vote.agree").wait()

    protocol = PROTOCOLS["exchange" if transport == "auto" else transport]
    for start in range(0, vote.size, PIECE):
        piece = flat[start : start + PIECE]
        sign, nonzero, _, _ = algebra.pack_ballot(piece, abstain)
        running = protocol(Planes(sign, nonzero), comm.rank, comm.size, abstain=abstain)
        decided = Vote(running, collectives, "majority_vote").wait()
        vote[start : start + PIECE] = algebra.unpack_votes(decided.sign, decided.nonzero, piece.size)
    return vote.reshape(shape)


class MpiCollectives(AtOnce):
    """`collectives.Collectives` by mpi4py."""

    def __init__(self, comm: "MPI.Intracomm") -> None:
        self._comm, self.rank, self.size = comm, comm.rank, comm.size

    def start(self, request: Request, name: str) -> np.ndarray:
        if isinstance(request, Alltoall):
            return self._alltoall(request.buffer, np.array(request.lengths, np.int64))
        if isinstance(request, Allgather):
            return self._allgather(request)
        summed = np.empty_like(request.words)
        self._comm.Allreduce(request.words, summed)  # MPI.SUM is mpi4py's default
        return summed

    def _alltoall(self, buffer: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        incoming = self._tell_each(lengths)
        received = np.empty(incoming.sum(), np.uint8)
        self._comm.Alltoallv([buffer, lengths], [received, incoming])
        return received

    def _allgather(self, request: Allgather) -> np.ndarray:
        if request.alike:
            received = np.empty(self.size * len(request.buffer), np.uint8)
            self._comm.Allgather(request.buffer, received)
            return received
        lengths = self._tell_all(len(request.buffer))
        received = np.empty(lengths.sum(), np.uint8)
        self._comm.Allgatherv(request.buffer, [received, lengths])
        return received

    def _tell_each(self, lengths: np.ndarray) -> np.ndarray:
        """Tells each rank its length; returns what each has for this one."""
        incoming = np.empty_like(lengths)
        self._comm.Alltoall(lengths, incoming)
        return incoming

    def _tell_all(self, length: int) -> np.ndarray:
        """Tells all ranks a length; returns those of all."""
        lengths = np.empty(self.size, np.int64)
        self._comm.Allgather(np.array([length], np.int64), lengths)
        return lengths


def _communicator(comm: Any) -> Any:
    try:
        MPI = load_mpi()
    except ImportError as error:
        raise ImportError(f"majority_vote needs mpi4py: {error}") from error
    if comm is None:
        comm = MPI.COMM_WORLD
        warn_if_alone(comm.size)
    if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
        raise TypeError(
            f"majority_vote needs an mpi4py intracommunicator, got {comm!r}: pass for example MPI.COMM_WORLD"
        )
    return comm


def _check(x: np.ndarray, abstain: Any, transport: Any, size: int) -> None:
    """Raises TypeError or ValueError for what is wrong with this rank's arguments by themselves."""
    if not isinstance(abstain, bool | np.bool_):
        raise TypeError(f"abstain must be True or False, got {abstain!r}")
    check_transport(transport)
    algebra.dtype_code(x.dtype)
    if transport == "counts":
        algebra.counts_bits(size)
