"""Small models on CPUs under MPI: one vote a step, by mpi4py, instead of many by Horovod's engine.

A Horovod op waits for the next cycle of the engine and for the coordinator, 1 to 3 ms before it moves a byte, twice a
vote; a small collective of MPI takes microseconds. Nothing overlaps with backward then, so it pays for small models
only. The collectives run in `step()`, on a communicator of their own, and never in the hooks of gradients, where ranks
may come in different orders and would wait for each other.
"""

import horovod.torch as hvd
import torch

from horovod_sign.voting.mpi import MpiCollectives

# Coordinates up to which `transport="auto"` votes by mpi4py: see the table in README.md for what was measured.
SMALL = 2_000_000


def usable(parameters: list[torch.Tensor], process_set) -> bool:
    """Whether a vote on these parameters should go by mpi4py: the ranks must agree on the answer before they act."""
    small = sum(p.numel() for p in parameters) <= SMALL and all(p.device.type == "cpu" for p in parameters)
    if not small or process_set.size() == 1 or not hvd.mpi_enabled():
        return False
    try:
        from mpi4py import MPI
    except ImportError:
        return False
    return MPI.COMM_WORLD.size == hvd.size() and MPI.COMM_WORLD.rank == hvd.rank()


def collectives(process_set) -> MpiCollectives:
    """MPI's collectives within a process set, on a communicator that nobody else uses. A collective."""
    from mpi4py import MPI

    ranks = list(range(hvd.size())) if process_set.process_set_id == 0 else process_set.ranks
    return MpiCollectives(MPI.COMM_WORLD.Create_group(MPI.COMM_WORLD.group.Incl(ranks)))
