"""Was this process started together with others that it does not know of? Then each of them trains by itself.

Where a launcher and the MPI library do not understand each other (`srun` without `--mpi=pmix`, another MPI's
`mpiexec`), every process is rank 0 of 1, and exits with status 0. It may also be meant: a sweep.
"""

import functools
import os
import warnings

# What launchers say in the environment of each process. `SLURM_NTASKS` is none of these: it is set in the script of a
# batch job too, of which there is one.
_LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_HOROVODRUN = "HOROVOD_SIZE"  # set over Gloo, and then right
_RANKS = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")


def started_together() -> tuple[str, int]:
    """How many processes a launcher started as one job, 1 if none did; and the variable that says so."""
    numbers = {name: os.environ.get(name, "") for name in (_HOROVODRUN, *_LAUNCHERS)}
    numbers = {name: int(number) for name, number in numbers.items() if number.isdecimal()}
    if _HOROVODRUN in numbers:
        return _HOROVODRUN, numbers[_HOROVODRUN]
    return max(numbers.items(), key=lambda pair: pair[1], default=("", 1))


def alone_among_many(size: int) -> str | None:
    """What to tell the user if this process is one of `size` = 1 though it was started with others, else None."""
    name, number = started_together()
    if size != 1 or number <= 1:
        return None
    return (
        f"this process is alone (rank 0 of 1), though {name} says that {number} were started together: each trains by "
        "itself, and nobody votes. Start them by the mpirun of the MPI that Horovod was built with, in Slurm by "
        "srun --mpi=pmix (nothing is wrong if these are separate trainings)"
    )


def warn_if_alone(size: int) -> None:
    """Warns, once in a process, of N separate trainings. `size`: the ranks that this process knows of."""
    message = alone_among_many(size)
    if message is not None:
        _warn(message)


@functools.cache
def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def speaks() -> bool:
    """Whether this process is the first of those that a launcher started, by its word alone: the one that prints."""
    ranks = [os.environ.get(name, "") for name in _RANKS]
    return next((int(rank) == 0 for rank in ranks if rank.isdecimal()), True)
