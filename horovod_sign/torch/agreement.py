"""Have all ranks the same parameters? Asked once, when an optimizer is wrapped: an error on all ranks, never a hang."""

import horovod.torch as hvd
import torch

from horovod_sign.voting.agreement import disagreement, encode_record


def check_same_parameters(names: dict[torch.Tensor, str], options: str, process_set, name: str):
    """Raises ValueError on all ranks, naming the first difference, unless parameters and options are the same.

    Args:
        names: the parameters that are voted on, in order, and their names.
        options: what else must be the same, in words.
        process_set: Horovod's, of the ranks that vote.
        name: of the Horovod ops.
    """
    lines = [options] + [_describe(p, label) for p, label in names.items()]
    record = torch.from_numpy(encode_record("\n".join(lines)).copy())
    records = hvd.allgather(record, name=f"{name}.agree", process_set=process_set)
    if disagreement(name, records.numpy().reshape(process_set.size(), -1)) is None:
        return
    raise ValueError(_first_difference(_allgather_lines(lines, process_set, name)))


def _allgather_lines(lines: list[str], process_set, name: str) -> list[list[str]]:
    # Horovod's allgather_object knows no process sets.
    text = torch.frombuffer(bytearray("\n".join(lines).encode()), dtype=torch.uint8)
    lengths = hvd.allgather(torch.tensor([len(text)]), name=f"{name}.lengths", process_set=process_set)
    texts = hvd.allgather(text, name=f"{name}.lines", process_set=process_set).split(lengths.tolist())
    return [bytes(each.numpy()).decode().split("\n") for each in texts]


def _describe(p: torch.Tensor, label: str) -> str:
    return f"{label}: {str(p.dtype).removeprefix('torch.')}, shape {tuple(p.shape)}, strides {p.stride()}"


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
        f"rank 0 ({mine}) and of rank {rank} ({theirs}) differ: build model and optimizer alike on all ranks"
    )
