"""Horovod's `broadcast_optimizer_state` on our optimizers: the root's state for all, and nothing moves.

Horovod's function takes it that all ranks have state of the same kinds, and makes what is missing by a step. With a
checkpoint that one rank alone has loaded, ranks would wait for each other for ever, or part by one weight decay. A step
cannot tell who asks for it, but `state_dict` can: there our optimizers see that Horovod broadcasts them, do it
themselves, and leave nothing for it to do.
"""

import sys
from typing import Any, NamedTuple

import horovod.torch as hvd
import torch

from horovod_sign.tensors.planes import INTEGERS
from horovod_sign.torch.handshake import agree


class _Kind(NamedTuple):
    """A tensor in the root's state."""

    shape: torch.Size
    dtype: torch.dtype
    beside: bool  # on the device of its parameter; else on the host, as Adam's steps are


def asking_root() -> int | None:
    """The root rank, if it is Horovod's `broadcast_optimizer_state` that asks for a state dict."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is hvd.broadcast_optimizer_state.__code__:
            return frame.f_locals["root_rank"]
        frame = frame.f_back
    return None


def broadcast_state(optimizer: torch.optim.Optimizer, root: int, states: list[dict]) -> dict:
    """Gives all ranks the options and the state of the root. A collective of all ranks of the job.

    Args:
        optimizer: of which all ranks have the same parameters, or it is an error on all.
        root: the rank whose state it is.
        states: what holds the states of parameters, by parameter; changed in place.

    Returns:
        The state dict that Horovod goes on with: without options and tensors, and not the empty one that it would fill
        by a step.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    items = [("the number of parameter groups", str(len(optimizer.param_groups)))]
    # Not their strides: what is sent lies in memory by index.
    items += [(f"parameter {i}", f"{p.dtype}, shape {tuple(p.shape)}") for i, p in enumerate(parameters)]
    tensors = _Tensors(agree(items, None, hvd.global_process_set), root)
    options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    kinds = [{i: _kinds(p, state[p]) for i, p in enumerate(parameters) if p in state} for state in states]
    options, kinds = hvd.broadcast_object((options, kinds), root, name=f"{tensors.name}.kinds")
    for group, of_root in zip(optimizer.param_groups, options, strict=True):
        group.update(of_root)
    for state, of_root in zip(states, kinds, strict=True):
        for i, p in enumerate(parameters):
            old = state.pop(p, {})
            if i in of_root:
                state[p] = {key: tensors.share(p, old.get(key), kind) for key, kind in of_root[i].items()}
    tensors.wait()
    return {"state": {0: {}}, "param_groups": []}


def _kinds(p: torch.Tensor, state: dict) -> dict[str, Any]:
    """What others must know of a state to receive it: tensors are broadcast by themselves, all else by this."""
    return {
        key: _Kind(value.shape, value.dtype, value.device == p.device) if isinstance(value, torch.Tensor) else value
        for key, value in state.items()
    }


class _Tensors:
    """Broadcasts of tensors that are under way."""

    def __init__(self, name: str, root: int) -> None:
        self.name, self._root = name, root
        self._handles: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def share(self, p: torch.Tensor, old: Any, kind: Any) -> Any:
        """The value of the root for a state of `p`; a tensor's elements are there after `wait`."""
        if not isinstance(kind, _Kind):
            return kind
        tensor = old if hvd.rank() == self._root else _room(p, old, kind)
        if tensor.numel():
            sent = tensor.detach().contiguous()  # itself, unless it lies in memory in another order
            flat = torch.view_as_real(sent) if sent.is_complex() else sent
            # Horovod broadcasts integers of all sizes, but not all of torch's types.
            flat = flat.view(-1).view(INTEGERS[flat.element_size()])
            name = f"{self.name}.{len(self._handles)}"
            self._handles.append((hvd.broadcast_async_(flat, self._root, name), sent, tensor))
        return tensor

    @torch.no_grad()
    def wait(self) -> None:
        """Waits for all of them."""
        for handle, sent, tensor in self._handles:
            hvd.synchronize(handle)
            if sent.data_ptr() != tensor.data_ptr():
                tensor.copy_(sent)


def _room(p: torch.Tensor, old: Any, kind: _Kind) -> torch.Tensor:
    """Where a tensor of the root is received: in the one that is there, if it is like it."""
    device = p.device if kind.beside else torch.device("cpu")
    wanted = kind.shape, kind.dtype, device
    if isinstance(old, torch.Tensor) and (old.shape, old.dtype, old.device) == wanted and old.is_contiguous():
        return old
    if kind.shape == p.shape:
        return torch.empty_like(p, dtype=kind.dtype, device=device, memory_format=torch.preserve_format)
    return torch.empty(kind.shape, dtype=kind.dtype, device=device)
