"""What a worker votes on, by torch's operations: a rule of the user's own, and any rule of a single tensor."""

from collections.abc import Sequence

import torch

from horovod_sign.rules import Rule, checked_ballot
from horovod_sign.tensors.arithmetic import interpolated
from horovod_sign.tensors.planes import DTYPES


def state_of(p: torch.Tensor, state: dict, name: str) -> torch.Tensor:
    """A float32 state in `state`, made of zeros in the memory layout of `p` if it is not there yet."""
    if name not in state:
        state[name] = torch.zeros_like(p, dtype=torch.float32, memory_format=torch.preserve_format)
    return state[name]


def local_ballot(rule: Rule, gradient: torch.Tensor, state: dict, warm: bool) -> torch.Tensor:
    """What this worker votes on, by `rules`; the states of the rule are updated.

    Args:
        rule: any.
        gradient: of one parameter.
        state: where the states of the parameter are kept.
        warm: votes are on the gradient, while states fill.
    """
    if rule.takes_gradient:
        return gradient
    states = [state_of(gradient, state, name) for name in rule.states]
    if rule.betas is None:
        return own_ballot(rule, gradient, states, warm)
    (m,) = states
    voted, kept = interpolated(gradient, m, rule.betas, warm)
    m.copy_(kept)
    return voted


@torch.no_grad()
def own_ballot(rule: Rule, gradient: torch.Tensor, states: Sequence[torch.Tensor], warm: bool) -> torch.Tensor:
    """As `local_ballot`, by what `rule.ballot` says. The states are changed in place, if it raises no error.

    Raises:
        RuntimeError: it does, or returns what it must not.
    """
    if not gradient.numel():
        return gradient
    exact = gradient.detach().to(torch.float32)
    finite = torch.isfinite(exact)

    def tensor(value) -> torch.Tensor:
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"one is a {type(value).__name__}")
        if value.device != gradient.device:
            raise TypeError(f"one is on {value.device}, and the gradient on {gradient.device}")
        return value.to_dense() if value.layout is not torch.strided else value

    copies = [state.clone() for state in states]  # for rules that change them in place
    voted, *new = checked_ballot(rule, exact.where(finite, 0.0), copies, tensor, _kind)
    for state, kept in zip(states, new, strict=True):
        kept = kept.to(torch.float32)
        state.copy_(kept.where(finite & torch.isfinite(kept), state))
    if warm:
        return gradient
    # NaN of the rule's own abstain as zeros do, so that NaN are those of gradients wherever they are counted.
    return voted.where(finite, exact.to(voted.dtype)).masked_fill(finite & torch.isnan(voted), 0.0)


def _kind(x: torch.Tensor) -> tuple[tuple[int, ...], str, bool]:
    return tuple(x.shape), str(x.dtype).removeprefix("torch."), x.dtype in DTYPES
