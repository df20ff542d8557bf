"""Which rank this process is, of how many, as the launcher says; 0 of 1 where tests are only collected."""

import os
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
    everyone = list(range(SIZE))
    sets = [hvd.global_process_set if list(m) == everyone else hvd.add_process_set(list(m)) for m in members]
    try:
        yield sets
    finally:
        for each in sets:
            if each is not hvd.global_process_set:
                hvd.remove_process_set(each)
