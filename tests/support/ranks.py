"""Which rank this process is, of how many, as the launcher says; 0 of 1 where tests are only collected."""

import os
import sys
from contextlib import contextmanager

RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "0")))
SIZE = int(os.environ.get("OMPI_COMM_WORLD_SIZE", os.environ.get("PMI_SIZE", "1")))
LAST = SIZE - 1


@contextmanager
def process_sets(hvd, *members):
    """Horovod's process sets of these lists of ranks, for a while. All ranks make them alike.

    Args:
        hvd: Horovod for the framework.
        *members: for each set its ranks; the set of all ranks is Horovod's own.
    """
    from mpi4py import MPI  # not where tests are only collected

    everyone = list(range(SIZE))
    sets = [hvd.global_process_set if list(m) == everyone else _new_process_set(hvd, list(m)) for m in members]
    try:
        yield sets
        # Horovod can wait for ever if one rank removes a set while others still work in it.
        MPI.COMM_WORLD.Barrier()
    finally:
        for each in sets:
            if each is not hvd.global_process_set:
                hvd.remove_process_set(each)


def _new_process_set(hvd, ranks: list[int]):
    """A process set that a test makes and removes; one of the same ranks that hierarchical votes have left goes."""
    nodes = sys.modules.get("horovod_sign.voting.nodes")
    left = None if nodes is None else nodes._sets.pop(tuple(ranks), None)
    if left is not None and left.process_set_id is not None:
        hvd.remove_process_set(left)
    return hvd.add_process_set(ranks)
