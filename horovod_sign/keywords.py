"""Horovod's keywords: what a vote cannot have is refused; what means nothing for a vote asks for nothing."""

from collections.abc import Mapping
from typing import Any, TypedDict

_DEFAULTS = {"gradient_predivide_factor": 1.0, "num_groups": 0, "groups": None}
_OPS = ("Average", "Sum", "Adasum", "Min", "Max", "Product")
_ALIKE = ("Average", "Sum")  # the sign of an average is that of the sum


class HorovodKeywords(TypedDict, total=False):
    """What else Horovod's wrappers take, and ours if it asks for nothing that a vote cannot have."""

    op: Any
    gradient_predivide_factor: float
    num_groups: int
    groups: Any
    device_dense: str
    device_sparse: str
    use_locking: bool
    average_aggregated_gradients: bool
    scale_local_gradients: bool


def check_keywords(
    wrapper: str, given: Mapping[str, Any], hvd: Any, without_effect: frozenset[str] = frozenset()
) -> None:
    """Raises TypeError, in one sentence, for keywords that ask for what a vote cannot have.

    Args:
        wrapper: which was given them, for the message.
        given: those that it does not know.
        hvd: Horovod for the framework, whose ops are known by name.
        without_effect: names of those that mean nothing for a vote, whatever they are.
    """
    refused = [
        _described(name, value, hvd)
        for name, value in given.items()
        if name not in without_effect and not _asks_for_nothing(name, value, hvd)
    ]
    if refused:
        raise TypeError(
            f"hvs.{wrapper} has no {', '.join(refused)}: a vote is the sign of a sum, which is that of the average too "
            "(op may be Average or Sum, without a difference), and makes its own groups; leave them out"
        )


def without_horovods_default(compression: Any, horovods: Any) -> Any:
    """The compression that a wrapper was given, which may be Horovod's default by name, as scripts have it.

    Args:
        compression: ours, None, or Horovod's `Compression.none`, which asks for nothing: None.
        horovods: Horovod's `Compression` for the framework.
    """
    return None if compression is horovods.none else compression


def wrong_compression(compression: object) -> TypeError:
    """The error about a compression that is not ours."""
    if isinstance(compression, str):
        return TypeError(
            f"compression must be hvs.Compression.signsgd(), signum(), lion() or of(rule), got {compression!r}: if it "
            "is Horovod's device_dense, given by position, leave it out, and give what follows it by keyword"
        )
    return TypeError(
        "compression must be hvs.Compression.signsgd(), signum(), lion() or of(rule) (or Horovod's default, "
        f"Compression.none, or left out: votes on what the optimizer says itself, or else on gradients), got "
        f"{compression!r}: there is no way not to vote"
    )


def _asks_for_nothing(name: str, value: Any, hvd: Any) -> bool:
    if name == "op":
        return value is None or value in [getattr(hvd, op) for op in _ALIKE if hasattr(hvd, op)]
    return name in _DEFAULTS and (value is None if _DEFAULTS[name] is None else value == _DEFAULTS[name])


def _described(name: str, value: Any, hvd: Any) -> str:
    ops = [op for op in _OPS if name == "op" and getattr(hvd, op, None) == value]
    return f"op={ops[0]}" if ops else name
