"""What the wrappers of both frameworks are given alike: checked here, before anything is built or sent.

Each function raises TypeError or ValueError, in one sentence, for what cannot be meant. `hvd` is Horovod for the
framework.
"""

import numbers
import os
from typing import Any

from horovod_sign.launched import warn_if_alone
from horovod_sign.voting.protocols import TRANSPORTS, check_transport

BUCKET_CAP_MB = 64.0
"""Megabytes (10^6 bytes) of gradients that PyTorch's adapter votes on together, unless it is told otherwise."""


def require_horovod(hvd: Any, before: str = "the first vote") -> None:
    """Raises unless Horovod is initialised."""
    if not hvd.is_initialized():
        raise ValueError(f"Horovod is not initialised: call hvd.init() before {before} (hvd is {hvd.__name__})")


def reachable(hvd: Any, process_set: Any, before: str = "the first vote") -> Any:
    """The process set of the ranks that must hear of errors: all, if `process_set` is none.

    Raises:
        ValueError: Horovod cannot reach the other ranks, so that this rank can only speak for itself.
    """
    require_horovod(hvd, before)
    warn_if_alone(hvd.size())
    if not isinstance(process_set, hvd.ProcessSet):
        return hvd.global_process_set
    if process_set.process_set_id is None:
        raise ValueError(
            "the process set is not registered: call hvd.add_process_set, or give hvd.init() process_sets="
        )
    if process_set.included() is False:
        raise ValueError(f"rank {hvd.rank()} is not in the process set {process_set.ranks}: leave it out of the vote")
    return process_set


def check_process_set(hvd: Any, process_set: Any) -> None:
    """Raises unless it is one of Horovod's."""
    if not isinstance(process_set, hvd.ProcessSet):
        raise TypeError(
            f"process_set must be a {hvd.__name__}.ProcessSet, got {process_set!r}: if it is Horovod's op, given by "
            "position, leave it out, since a vote is neither a sum nor an average, and give what follows it by keyword"
        )


def check_voting(
    hvd: Any,
    process_set: Any,
    transport: Any,
    passes: Any,
    hierarchical: Any,
    transports: tuple[str, ...] = TRANSPORTS,
) -> None:
    """Raises for what votes cannot be like. `transports` are those that there are."""
    check_transport(transport, transports)
    if transport == "device":
        if hierarchical:
            raise ValueError('transport="device" is for votes of ranks: leave it, or hierarchical=True, out')
        if in_elastic_job():
            raise ValueError(
                'transport="device" cannot be used in an elastic job, whose ranks come and go: leave it out'
            )
    if not isinstance(passes, int) or passes < 1:
        raise ValueError(f"backward_passes_per_step must be an integer of at least 1, got {passes!r}")
    if hierarchical:
        if in_elastic_job():
            raise ValueError(
                "hierarchical=True cannot be used in an elastic job, whose nodes come and go: leave it out"
            )
        if process_set.size() != hvd.size():
            raise ValueError("hierarchical=True is for votes of all ranks: leave process_set out")


def in_elastic_job() -> bool:
    """Whether ranks come and go."""
    return os.environ.get("HOROVOD_ELASTIC") == "1"


def bucket_bytes(bucket_cap_mb: float) -> int:
    """Of the gradients that are voted on together. Raises unless it is a size."""
    if not isinstance(bucket_cap_mb, numbers.Real):
        raise TypeError(f"bucket_cap_mb must be a number, got {bucket_cap_mb!r}")
    if not 0 < bucket_cap_mb < float("inf"):
        raise ValueError(f"bucket_cap_mb must be more than 0 and finite, got {bucket_cap_mb!r}")
    return int(bucket_cap_mb * 1e6)
