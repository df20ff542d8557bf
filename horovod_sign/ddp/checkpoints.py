"""Checkpoints of a VoteState. Every rank has momenta of its own, and a checkpoint is one file.

saved = state.gather_state_dict(model)        # on all ranks
if dist.get_rank() == 0:
    torch.save({"model": net.state_dict(), "votes": saved}, path)
...
state.load_state_dict(torch.load(path)["votes"], model)      # on all ranks
"""

from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from horovod_sign.carriers.process_group import device_of
from horovod_sign.ddp.handshake import agree
from horovod_sign.states import ALL_RANKS, of_rank
from horovod_sign.tensors.ballots import state_of


def own(state: Any, model: torch.nn.Module) -> dict:
    """The states of this rank, by name of the parameter."""
    return {"states": {name: dict(state.states.get(p, {})) for name, p in _named(model).items() if p.requires_grad}}


def gathered(state: Any, model: torch.nn.Module, root_rank: int) -> dict | None:
    """The states of this rank, and the tensors among them of all ranks; None but on the root.

    Raises:
        ValueError: ranks have not voted on the same parameters, or have frozen others. On all ranks.
    """
    group, rank, size = state.process_group, state.courier.rank, state.courier.size
    kept, momenta = own(state, model), {}
    # What all ranks know alike: a rank that has not used a parameter yet has no states of it, but takes part.
    voted_on = {name: p for name, p in _named(model).items() if name in kept["states"] and p in state.states}
    wanted = [(name, key) for name in voted_on for key in state.rule.states]
    agree([(f"{key} of {name}", str(tuple(voted_on[name].shape))) for name, key in wanted], None, group)
    for name, key in wanted:
        p = voted_on[name]
        mine = state_of(p, kept["states"][name], key).detach().to(device_of(group)).contiguous()
        del kept["states"][name][key]
        every = torch.empty((size, *p.shape), dtype=mine.dtype, device=mine.device)
        dist.all_gather(list(every), mine, group=group)
        if rank == root_rank:
            momenta[f"{name}.{key}"] = every.cpu()
        del mine, every  # a device holds those of one parameter at a time
    return {**kept, ALL_RANKS: {"ranks": size, "momenta": momenta}} if rank == root_rank else None


def load(state: Any, state_dict: dict, model: torch.nn.Module) -> None:
    """Takes states as this rank had them, or the mean of all where there were not as many ranks as now.

    Raises:
        ValueError: it is of another model. Nothing is taken then.
    """
    if not isinstance(state_dict, dict) or "states" not in state_dict:
        raise ValueError(
            "the state that was loaded is none of ddp.VoteState: give what state_dict or gather_state_dict gave"
        )
    named = _named(model)
    rank, size = state.courier.rank, state.courier.size
    loaded = {name: dict(values) for name, values in state_dict["states"].items()}
    for key, saved in state_dict.get(ALL_RANKS, {}).get("momenta", {}).items():
        name, _, what = key.rpartition(".")
        loaded.setdefault(name, {})[what] = of_rank(saved, rank, size)
    for name, values in loaded.items():
        for key, value in values.items():
            found = tuple(named[name].shape) if name in named else "no such parameter"
            if torch.is_tensor(value) and tuple(value.shape) != found:
                raise ValueError(
                    f"the state that was loaded is of another model: {key} of {name} has shape {tuple(value.shape)}, "
                    f"but here is {found}"
                )
    for name, p in named.items():
        values = loaded.get(name, {})
        mine = state.states.setdefault(p, {})  # buckets hold it
        mine.clear()
        mine.update({k: v.to(p.device, copy=True) if torch.is_tensor(v) else v for k, v in values.items()})


def _named(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict((model.module if isinstance(model, DistributedDataParallel) else model).named_parameters())
