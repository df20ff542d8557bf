"""Have all ranks the same parameters? Asked before anything is voted on: an error on all ranks, never a hang."""

import horovod.torch as hvd
import torch

from horovod_sign.options import in_elastic_job
from horovod_sign.tensors.layout import Layout
from horovod_sign.voting.agreement import disagreement, encode_record

_numbers: dict[int, int] = {}


def agree(lines: list[str], error: Exception | None, process_set) -> str:
    """Raises an error on all ranks unless all bring the same lines and none has an error.

    A collective: all ranks of the process set call it.

    Args:
        lines: the options, and one line for each parameter that is voted on, in order.
        error: why this rank cannot go on by itself, if it cannot.
        process_set: Horovod's, of the ranks that vote.

    Returns:
        A name for the Horovod ops of an optimizer, the same on all ranks and new. Ranks may have made different numbers
        of optimizers before: in other process sets, or because they joined an elastic job later.
    """
    at = process_set.process_set_id
    name = f"horovod_sign.torch.set{at}"
    record = torch.from_numpy(encode_record("\n".join(lines), error).copy())
    number = torch.tensor([_numbers.get(at, 0)], device="cpu").view(torch.uint8)
    records = hvd.allgather(torch.cat([number, record]), name=f"{name}.agree", process_set=process_set)
    records = records.reshape(process_set.size(), -1)
    number = int(records[:, : len(number)].contiguous().view(torch.int64).max())
    _numbers[at] = number + 1
    found = disagreement("hvs.DistributedOptimizer", records[:, 8:].numpy())
    if found is None:
        return f"{name}.{number}"
    if error is not None:
        raise error
    if (records[:, 8] == ord("-")).all():  # no rank has an error of its own: their lines differ
        found = ValueError(_first_difference(_allgather_lines(lines, process_set, name)))
    raise found


def tell(error: Exception, process_set):
    """Raises `error`, why this rank cannot vote, and tells the others, which wait in `agree`."""
    if not in_elastic_job():  # there a rank makes its optimizer alone
        agree([], error, process_set)
    raise error


def describe(names: dict[torch.Tensor, str], layouts: dict[torch.Tensor, Layout]) -> list[str]:
    """A line for each parameter. `layouts`: of those that are voted on already, wherever they lie by now."""
    return [_describe(p, label, layouts.get(p) or Layout(p)) for p, label in names.items()]


def _allgather_lines(lines: list[str], process_set, name: str) -> list[list[str]]:
    # Horovod's allgather_object knows no process sets.
    text = torch.frombuffer(bytearray("\n".join(lines).encode(errors="backslashreplace")), dtype=torch.uint8)
    lengths = hvd.allgather(torch.tensor([len(text)], device="cpu"), name=f"{name}.lengths", process_set=process_set)
    texts = hvd.allgather(text, name=f"{name}.lines", process_set=process_set).split(lengths.tolist())
    return [bytes(each.numpy()).decode().split("\n") for each in texts]


def _describe(p: torch.Tensor, label: str, layout: Layout) -> str:
    dtype = str(p.dtype).removeprefix("torch.")
    return f"{label}: {dtype}, shape {tuple(layout.shape)}, strides {layout.strides}"


def _first_difference(all_lines: list[list[str]]) -> str:
    first = all_lines[0]
    rank = next(r for r, lines in enumerate(all_lines) if lines != first)
    other = all_lines[rank]
    for i in range(max(len(first), len(other))):
        mine, theirs = (lines[i] if i < len(lines) else "nothing more" for lines in (first, other))
        if mine != theirs:
            what = "the options" if i == 0 else f"parameter {i - 1}"
            break
    return (
        f"the ranks of a vote must have the same parameters in the same order, and the same options, but {what} of "
        f"rank 0 ({mine}) and of rank {rank} ({theirs}) differ: build model and optimizer alike on all ranks, and "
        "freeze, add or replace parameters on all of them alike"
    )
