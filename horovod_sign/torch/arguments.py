"""What `DistributedOptimizer` is given: checked before anything is built or sent."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import horovod.torch as hvd
import torch

from horovod_sign.keywords import check_keywords
from horovod_sign.options import check_process_set
from horovod_sign.tensors import kernels
from horovod_sign.tensors.layout import has_memory, is_dense
from horovod_sign.tensors.planes import check_votable
from horovod_sign.tensors.scalers import check_scaler


def check_arguments(optimizer: object, process_set: Any, grad_scaler: object, unsupported: Mapping[str, Any]) -> None:
    """Raises TypeError or ValueError, in one sentence, for arguments of PyTorch's wrapper that cannot be meant."""
    check_process_set(hvd, process_set)
    check_keywords("DistributedOptimizer", unsupported, hvd)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if hasattr(optimizer, "vote_statistics"):
        raise ValueError("the optimizer is already wrapped by hvs.DistributedOptimizer: wrap it once")
    if hasattr(optimizer, "_allreduce_grad_async"):
        raise ValueError(
            "the optimizer is already wrapped by Horovod's own DistributedOptimizer, which averages gradients: give "
            "hvs.DistributedOptimizer the plain optimizer instead"
        )
    check_scaler(grad_scaler)


def check_every(check_replicas: object) -> None:
    """Raises unless it is a number of steps."""
    if not isinstance(check_replicas, int) or check_replicas < 0:
        raise ValueError(
            f"check_replicas must be a number of steps, an integer of at least 0 (0: never), got {check_replicas!r}"
        )


def names_by_parameter(named_parameters: Iterable[tuple[str, torch.Tensor]]) -> dict[torch.Tensor, str]:
    """What `model.named_parameters()` says, the other way round; ValueError if that is not what it is."""
    named = list(named_parameters)
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in named):
        raise ValueError("named_parameters must be pairs of name and parameter, as model.named_parameters() gives")
    names = [name for name, _ in named]
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise ValueError(f"names in named_parameters must be unique, but these are not: {', '.join(twice)}")
    return {p: name for name, p in named}


def names_in_groups(groups: Iterable[dict]) -> dict[torch.Tensor, str]:
    """What optimizers that were made of `model.named_parameters()` (torch 2.6) call their parameters."""
    return {p: name for group in groups for p, name in zip(group["params"], group.get("param_names", ()), strict=False)}


def trainable(optimizer: torch.optim.Optimizer, names: dict[torch.Tensor, str]) -> dict[torch.Tensor, str]:
    """The trainable parameters in the optimizer's order, and what to call them."""
    return {
        p: names.get(p, f"{j} of group {i}")
        for i, group in enumerate(optimizer.param_groups)
        for j, p in enumerate(group["params"])
        if p.requires_grad
    }


def check_named(parameters: dict[torch.Tensor, str], names: dict[torch.Tensor, str]) -> None:
    """Raises ValueError for parameters of the optimizer that `named_parameters` left out."""
    unnamed = [label for p, label in parameters.items() if p not in names]
    if unnamed:
        raise ValueError(f"named_parameters was given but lacks parameters of the optimizer: {', '.join(unnamed)}")


def check_parameters(parameters: dict[torch.Tensor, str]) -> None:
    """Raises TypeError for a parameter that cannot be voted on."""
    for p, label in parameters.items():
        check_parameter(f"parameter {label}", p)


def check_parameter(name: str, p: torch.Tensor) -> None:
    """Raises TypeError unless `p` can be voted on and stepped."""
    if torch.nn.parameter.is_lazy(p):
        raise TypeError(f"{name} is not initialised: run the model once before the optimizer is wrapped")
    check_votable(name, p)
    if not p.is_leaf:
        raise TypeError(f"{name} was computed from others: give the optimizer what it was computed from")
    if not is_dense(p):
        raise TypeError(f"{name} has holes or overlaps in memory (strides {p.stride()}): make it contiguous")
    if not has_memory(p):
        raise TypeError(f"{name} has no memory for its {p.numel()} coordinates: its storage was freed or made smaller")
    if kernels.set_of(p.device.type) == "native" and p.numel() and p.data_ptr() == 0:
        raise TypeError(
            f"{name} is a {type(p).__name__}, which keeps its values elsewhere: votes are on plain tensors; wrap the "
            "optimizer of those that it is made of"
        )
