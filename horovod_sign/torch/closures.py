"""Closures of optimizers whose gradients are votes: a vote after each evaluation, however often there is one.

torch's optimizers evaluate a closure once, and then step. Others evaluate it before and after they have moved (SAM), or
as often as the losses tell them to (LBFGS, line searches): then all ranks must be told the same loss.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch


class VotedClosure:
    """What the optimizer that is wrapped gets for the user's closure.

    Args:
        optimizer: made by `hvs.DistributedOptimizer`.
        votes: its `Votes`.
        closure: the user's.
        plain: whether `takes_plain_steps`; if not, losses are averaged over the ranks.
    """

    def __init__(self, optimizer: Any, votes: Any, closure: Callable[..., Any], plain: bool) -> None:
        self._optimizer, self._votes, self._closure, self._plain = optimizer, votes, closure, plain

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.enable_grad():
            loss = self._closure(*args, **kwargs)
        if self._plain:
            self._optimizer.vote_on_gradients()
            return loss
        if self._votes.new_gradients():
            self._optimizer.vote_anew()
        return self._mean(loss)

    def _mean(self, loss: Any) -> Any:
        known = isinstance(loss, int | float) or (isinstance(loss, torch.Tensor) and loss.numel() == 1)
        value = loss.detach() if isinstance(loss, torch.Tensor) else loss  # torch warns of a number with a graph
        total, number = self._votes.total([float(value), 1.0] if known else [0.0, 0.0], "loss")
        if not known:
            return loss
        return torch.full_like(loss, total / number) if isinstance(loss, torch.Tensor) else total / number


def takes_plain_steps(step: Callable) -> bool:
    """Whether a step begins with the one evaluation of its closure, as those of torch's optimizers do but LBFGS."""
    closure = inspect.signature(step).parameters.get("closure")
    return step.__module__.startswith("torch.optim.") and closure is not None and closure.default is None
