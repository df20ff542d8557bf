"""Momenta are each rank's own. What a rank starts with when they were saved by all."""

from typing import Any

ALL_RANKS = "horovod_sign_momenta"  # where a PyTorch checkpoint has them


def of_rank(saved: Any, rank: int, size: int) -> Any:
    """One rank's momentum of those that all ranks had: its own, bit for bit, or among others their mean.

    Args:
        saved: the momenta of all ranks along the first axis: a NumPy array or a PyTorch tensor.
        rank, size: who wants it, among how many.
    """
    return saved[rank] if len(saved) == size else saved.mean(0)
