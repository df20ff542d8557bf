"""Horovod's `broadcast_parameters`, also of dtypes that it does not send, as bfloat16, and of any layout in memory."""

from typing import Any

import horovod.torch as hvd
import torch

from horovod_sign.tensors.planes import INTEGERS

_SENT = (torch.float16, torch.float32, torch.float64, *INTEGERS.values())


def broadcast_parameters(params: Any, root_rank: int) -> None:
    """Horovod's, for `model.state_dict()` or a list of parameters: all ranks get those of the root.

    What is of a dtype that Horovod does not send, as bfloat16, goes as whole numbers of as many bytes; what is not
    contiguous, as in channels_last, by a copy. Tensors without a name have one by their place in the list: Horovod
    counts ops instead, which need not be as many on all ranks.

    Args:
        params: a dict of names and tensors, or a list of tensors or of such pairs.
        root_rank: whose they are.
    """
    copies: list[tuple[torch.Tensor, torch.Tensor]] = []
    if isinstance(params, dict):
        params = {name: _sendable(p, copies) for name, p in params.items()}
    elif isinstance(params, list):
        named = [p if isinstance(p, tuple) else (f"parameter.{i}", p) for i, p in enumerate(params)]
        params = [(name, _sendable(p, copies)) for name, p in named]
    hvd.broadcast_parameters(params, root_rank)
    with torch.no_grad():
        for values, received in copies:
            values.copy_(received)


def _sendable(p: Any, copies: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """A tensor that Horovod sends, with the memory of `p`; if that cannot be, it is among the copies."""
    if not isinstance(p, torch.Tensor) or p.layout is not torch.strided:
        return p
    values = torch.view_as_real(p.detach()) if p.is_complex() else p.detach()
    sent = values.contiguous()
    if sent.data_ptr() != values.data_ptr():
        copies.append((values, sent))
    return sent if sent.dtype in _SENT else sent.view(INTEGERS[sent.element_size()])
