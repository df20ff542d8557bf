"""Checkpoints: every rank has a momentum of its own, and a checkpoint is one file.

    state = hvs.gather_state_dict(optimizer)          # on all ranks
    if hvd.rank() == 0:
        torch.save({"model": model.state_dict(), "optimizer": state}, path)
    ...
    optimizer.load_state_dict(torch.load(path)["optimizer"])   # on all ranks

On as many ranks as saved it, each gets its own momentum back, bit for bit. On another number of ranks, each starts
from the mean of the saved momenta. What rank 0 saved alone by `optimizer.state_dict()` loads too: all ranks that load
it then have rank 0's momentum.
"""

import horovod.torch as hvd
import torch

from horovod_sign.momenta import of_rank

ALL_RANKS = "horovod_sign_momenta"


def gather_state_dict(optimizer, root_rank: int = 0) -> dict | None:
    """The state of an `hvs.DistributedOptimizer` with the momenta of all ranks, for one checkpoint.

    A collective of the ranks that vote. Momenta are gathered one parameter at a time; the root holds M times the
    momentum in the end, M the number of ranks.

    Args:
        optimizer: made by `hvs.DistributedOptimizer`.
        root_rank: which rank of its process set wants it.

    Returns:
        On the root, `optimizer.state_dict()` with a further entry, for `optimizer.load_state_dict`. Elsewhere None.
    """
    if not hasattr(optimizer, "vote_statistics"):
        raise TypeError(f"optimizer must be made by hvs.DistributedOptimizer, got {type(optimizer).__name__}")
    process_set, state_dict = optimizer._votes.options.process_set, optimizer.state_dict()
    is_root = process_set.rank() == root_rank
    momenta = {}
    for key, momentum in _momenta(state_dict).items():
        name = f"horovod_sign.torch.gather_state_dict.{key}"
        gathered = hvd.allgather(momentum.contiguous()[None], name=name, process_set=process_set)
        if is_root:
            momenta[key] = gathered.cpu()  # a device holds those of one parameter at a time
    return {**state_dict, ALL_RANKS: {"ranks": process_set.size(), "momenta": momenta}} if is_root else None


def of_this_rank(state_dict: dict, process_set) -> dict:
    """A state dict as `optimizer.state_dict()` of this rank would have given it, from one with the momenta of all."""
    if ALL_RANKS not in state_dict:
        return state_dict
    saved = state_dict[ALL_RANKS]
    state_dict = {k: v for k, v in state_dict.items() if k != ALL_RANKS}
    for place in ("state", "horovod_sign"):
        if place in state_dict:
            state_dict[place] = {key: dict(state) for key, state in state_dict[place].items()}
    for key, state in _holders(state_dict).items():
        state["momentum_buffer"] = of_rank(saved["momenta"][key], process_set.rank(), process_set.size())
    return state_dict


def _holders(state_dict: dict) -> dict[int, dict]:
    """The states that hold a momentum that a rank votes by, by number of the parameter.

    Other optimizers keep theirs, if they have any, in the other place; SGD even under the same name.
    """
    states = state_dict["horovod_sign"] if "horovod_sign" in state_dict else state_dict["state"]
    return {key: state for key, state in states.items() if "momentum_buffer" in state}


def _momenta(state_dict: dict) -> dict[int, torch.Tensor]:
    return {key: state["momentum_buffer"] for key, state in _holders(state_dict).items()}
