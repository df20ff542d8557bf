"""Mixed precision with a `torch.amp.GradScaler`, whose `unscale_` would divide the votes by its scale.

Losses are scaled, so gradients are; votes are on unscaled gradients, and are handed to DDP multiplied by the scale, a
power of two, so that `unscale_` makes exactly -1, 0 and +1 of them. An overflow on any rank is told to all with the
votes, which then are infinite on all: so all skip that step and lower their scales alike, as DDP has it without votes.
"""

import functools
import math
import weakref
from collections.abc import Container
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from horovod_sign.tensors.scalers import stepping_scaler


class Scale:
    """Of one VoteState.

    Args:
        scaler: the user's, or None.
        parameters: those that are voted on, as they become known.
    """

    def __init__(self, scaler: torch.amp.GradScaler | None, parameters: Container[torch.Tensor]) -> None:
        self._scaler: Any = scaler
        self._parameters = parameters
        self._there: Any = None  # where the scale was read last, which version of it, and what it was
        self._version, self._value = 0, 1.0
        _hook_of_all()
        _alive.add(self)

    @property
    def used(self) -> bool:
        """Whether losses are scaled."""
        return self._scaler is not None and self._scaler.is_enabled()

    def of_losses(self) -> float:
        """The scale of this pass, 1 without a scaler. On a device this waits, once in a pass.

        Raises:
            ValueError: it is not a power of two.
        """
        if not self.used:
            return 1.0
        there = self._scaler._scale  # None before the first loss
        if there is not None and there is self._there and there._version == self._version:
            return self._value
        scale = self._scaler.get_scale()
        if math.frexp(scale)[0] != 0.5:
            raise ValueError(
                f"the scale of grad_scaler must be a power of two, so that unscaled votes are exactly -1, 0 and +1, "
                f"but is {scale!r}: leave init_scale, growth_factor and backoff_factor as they are by default"
            )
        if there is not None:
            self._there, self._version, self._value = there, there._version, scale
        return scale

    def overflows(self, buffer: torch.Tensor, scale: float) -> bool:
        """Whether scaled gradients are infinite or NaN; unscales them. In one pass over memory, as a scaler does it."""
        if not self.used:
            return False
        found, inverse = (torch.full((), x, dtype=torch.float32, device=buffer.device) for x in (0.0, 1 / scale))
        torch._amp_foreach_non_finite_check_and_unscale_([buffer], found, inverse)
        return bool(found)

    def take_in(self, votes: torch.Tensor, overflow: bool, scale: float) -> None:
        """Scales votes, or makes them infinite if any rank's gradients overflowed."""
        if overflow:
            votes.fill_(math.inf)
        elif self.used:
            votes.mul_(scale)

    def check_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Raises RuntimeError if an optimizer is to step by these votes, and its GradScaler knows nothing of them."""
        if not any(p in self._parameters for group in optimizer.param_groups for p in group["params"][:1]):
            return
        caller = stepping_scaler()
        if caller is not None and not (caller is self._scaler or not caller.is_enabled()):
            raise RuntimeError(
                "a GradScaler steps this optimizer and would divide its votes by the scale: give ddp.VoteState "
                "grad_scaler=scaler, the one that steps, on all ranks"
            )
        if caller is None and self.used:
            raise RuntimeError(
                "optimizer.step() was called, but ddp.VoteState was given a grad_scaler, by whose scale the votes are "
                "multiplied: call scaler.step(optimizer) instead, or make the scaler with enabled=False"
            )


_alive: weakref.WeakSet[Scale] = weakref.WeakSet()


@functools.cache
def _hook_of_all() -> None:
    """Has each step of any optimizer of the process checked, from now on.

    The hook stays: one that went with its state could be removed, by the garbage collector, while torch calls hooks.
    """

    def check(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        for scale in list(_alive):
            scale.check_step(optimizer)

    register_optimizer_step_pre_hook(check)
