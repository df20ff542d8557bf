"""Have all ranks the same parameters? Asked before anything is voted on: an error on all ranks, never a hang."""

from typing import Any, NoReturn

import torch

from horovod_sign.options import in_elastic_job
from horovod_sign.tensors.layout import Layout
from horovod_sign.torch.collectives import HorovodCollectives
from horovod_sign.voting import handshake
from horovod_sign.voting.protocols import Vote

_numbers: dict[int, int] = {}


def agree(items: list[handshake.Item], error: Exception | None, process_set: Any) -> str:
    """Raises an error on all ranks unless all bring the same items and none has an error.

    A collective: all ranks of the process set call it.

    Args:
        items: the options, and one item for each parameter that is voted on, in order.
        error: why this rank cannot go on by itself, if it cannot.
        process_set: Horovod's, of the ranks that vote.

    Returns:
        A name for the Horovod ops of an optimizer, the same on all ranks and new. Ranks may have made different numbers
        of optimizers before: in other process sets, or because they joined an elastic job later.
    """
    at = process_set.process_set_id
    asked = handshake.agree(
        "hvs.DistributedOptimizer",
        items,
        error,
        process_set.size(),
        _numbers.get(at, 0),
        "have the same parameters in the same order, and the same options",
        "build model and optimizer alike, and freeze, add or replace parameters on all of them alike",
    )
    name = f"horovod_sign.torch.set{at}"
    try:
        number = Vote(asked, HorovodCollectives(process_set), f"{name}.agree").wait()
    except (TypeError, ValueError) as found:
        raise (error or found) from None
    _numbers[at] = number + 1
    return f"{name}.{number}"


def tell(error: Exception, process_set: Any) -> NoReturn:
    """Raises `error`, why this rank cannot vote, and tells the others, which wait in `agree`."""
    if not in_elastic_job():  # there a rank makes its optimizer alone
        agree([], error, process_set)
    raise error


def describe(names: dict[torch.Tensor, str], layouts: dict[torch.Tensor, Layout]) -> list[str]:
    """What each parameter is like. `layouts`: of those that are voted on already, wherever they lie by now."""
    return [_describe(p, label, layouts.get(p) or Layout(p)) for p, label in names.items()]


def _describe(p: torch.Tensor, label: str, layout: Layout) -> str:
    dtype = str(p.dtype).removeprefix("torch.")
    return f"{label}: {dtype}, shape {tuple(layout.shape)}, strides {layout.strides}"
