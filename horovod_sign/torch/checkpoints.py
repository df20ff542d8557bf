"""Checkpoints: every rank has a momentum, or other states of its rule, of its own, and a checkpoint is one file.

    state = hvs.gather_state_dict(optimizer)          # on all ranks
    if hvd.rank() == 0:
        torch.save({"model": model.state_dict(), "optimizer": state}, path)
    ...
    optimizer.load_state_dict(torch.load(path)["optimizer"])   # on all ranks

On as many ranks as saved it, each gets its own momentum back, bit for bit. On another number of ranks, each starts
from the mean of the saved momenta. What rank 0 saved alone by `optimizer.state_dict()` loads too: all ranks that load
it then have rank 0's momentum.
"""

from collections.abc import Iterator

import horovod.torch as hvd
import torch

from horovod_sign.states import ALL_RANKS, of_rank

_MOMENTUM = "momentum_buffer"  # which had its place in checkpoints before rules had other states


def gather_state_dict(optimizer: torch.optim.Optimizer, root_rank: int = 0) -> dict | None:
    """The state of an `hvs.DistributedOptimizer` with the momenta of all ranks, for one checkpoint.

    A collective of the ranks that vote. They are gathered one parameter at a time; the root holds M times the momentum
    in the end, M the number of ranks.

    Args:
        optimizer: made by `hvs.DistributedOptimizer`.
        root_rank: which rank of its process set wants it.

    Returns:
        On the root, `optimizer.state_dict()` with a further entry, for `optimizer.load_state_dict`. Elsewhere None.
    """
    if not hasattr(optimizer, "vote_statistics"):
        raise TypeError(f"optimizer must be made by hvs.DistributedOptimizer, got {type(optimizer).__name__}")
    process_set, state_dict = optimizer._votes.process_set, optimizer.state_dict()
    is_root = process_set.rank() == root_rank
    of_all: dict[str, dict[int, torch.Tensor]] = {}
    for state, key, value in _states(optimizer, state_dict):
        name = f"horovod_sign.torch.gather_state_dict.{state}.{key}"
        gathered = hvd.allgather(value.contiguous()[None], name=name, process_set=process_set)
        if is_root:
            of_all.setdefault(state, {})[key] = gathered.cpu()
        del gathered  # a device holds those of one parameter at a time
    if not is_root:
        return None
    saved = {"ranks": process_set.size(), "momenta": of_all.pop(_MOMENTUM, {})}
    return {**state_dict, ALL_RANKS: {**saved, "states": of_all} if of_all else saved}


def of_this_rank(state_dict: dict, process_set: hvd.ProcessSet) -> dict:
    """A state dict as `optimizer.state_dict()` of this rank would have given it, from one with the momenta of all."""
    if ALL_RANKS not in state_dict:
        return state_dict
    saved = state_dict[ALL_RANKS]
    state_dict = {k: v for k, v in state_dict.items() if k != ALL_RANKS}
    for place in ("state", "horovod_sign"):
        if place in state_dict:
            state_dict[place] = {key: dict(state) for key, state in state_dict[place].items()}
    holders = _holders(state_dict)
    for name, of_all in {_MOMENTUM: saved["momenta"], **saved.get("states", {})}.items():
        for key, values in of_all.items():
            holders[key][name] = of_rank(values, process_set.rank(), process_set.size())
    return state_dict


def _holders(state_dict: dict) -> dict[int, dict]:
    """Where the states that a rank votes by are, by number of the parameter.

    Other optimizers keep theirs, if they have any, in the other place; SGD even under the same name.
    """
    return state_dict["horovod_sign"] if "horovod_sign" in state_dict else state_dict["state"]


def _states(optimizer: torch.optim.Optimizer, state_dict: dict) -> Iterator[tuple[str, int, torch.Tensor]]:
    """The states that this rank votes by: name, number of the parameter, value."""
    rules = [optimizer.vote_rule(group) for group in optimizer.param_groups for _ in group["params"]]
    holders = _holders(state_dict)
    for key, rule in enumerate(rules):
        for name in rule.states:
            if name in holders.get(key, {}):
                yield name, key, holders[key][name]
