"""Elastic Horovod: ranks come and go, and votes go on among those that are there.

    state = hvs.elastic.TorchState(model=model, optimizer=optimizer, epoch=0)     # instead of hvd.elastic.TorchState

    @hvd.elastic.run
    def train(state): ...

Everything else that `horovod.torch.elastic` has is here too.

After a reset the votes are among the new ranks. Each rank that was there before keeps its own momentum (after a
failure, that of its last commit); one that joins starts from the mean of theirs, and with rank 0's parameters.
"""

import functools
from typing import Any

import horovod.torch as hvd
import horovod.torch.elastic
import torch
from horovod.torch.elastic.state import ModelStateHandler

from horovod_sign.adopted import adopt
from horovod_sign.torch.parameters import broadcast_parameters

__all__ = ["TorchState"]
__all__ += adopt(globals(), horovod.torch.elastic, __all__)


class TorchState(horovod.torch.elastic.TorchState):
    """Horovod's `TorchState`, for optimizers of `hvs.DistributedOptimizer` among others.

    Args:
        model, optimizer, kwargs: as Horovod's; any number of models, optimizers and other values.
    """

    def __init__(
        self, model: torch.nn.Module | None = None, optimizer: torch.optim.Optimizer | None = None, **kwargs: Any
    ) -> None:
        super().__init__(model=model, optimizer=optimizer, **kwargs)
        for handler in self._handlers.values():
            if isinstance(handler, ModelStateHandler):
                handler.sync = functools.partial(_share_model, handler)
        for each in self._voting_optimizers():
            each._votes.is_elastic = True

    def on_reset(self) -> None:
        """Horovod has been initialised anew: what was under way is void, and votes wait until all agree again."""
        for each in self._voting_optimizers():
            each._votes.lapse()
        super().on_reset()

    def sync(self) -> None:
        """As Horovod's, except that momenta stay with their ranks."""
        kept = {name: _copies(optimizer) for name, optimizer in self._named_optimizers().items()}
        super().sync()
        for name, optimizer in self._named_optimizers().items():
            _share_states(optimizer, kept[name], f"horovod_sign.torch.elastic.{name}")

    def _named_optimizers(self) -> dict:
        values = {name: handler.value for name, handler in self._handlers.items()}
        return {name: value for name, value in values.items() if hasattr(value, "vote_statistics")}

    def _voting_optimizers(self) -> list:
        return list(self._named_optimizers().values())


def _share_model(handler: ModelStateHandler) -> None:
    broadcast_parameters(handler.value.state_dict(), root_rank=0)


def _states(optimizer: Any) -> list[tuple[str, dict]]:
    """What this rank votes by: (name, where it is kept)."""
    places = [(optimizer.vote_rule(group), p) for group in optimizer.param_groups for p in group["params"]]
    held = [(name, optimizer.vote_state(p)) for rule, p in places for name in rule.states]
    return [(name, state) for name, state in held if name in state]


def _copies(optimizer: Any) -> list[torch.Tensor]:
    return [state[name].clone() for name, state in _states(optimizer)]


def _share_states(optimizer: Any, kept: list[torch.Tensor], name: str) -> None:
    """Gives each rank with a history its momenta back, and the mean of them to those without."""
    old = optimizer._votes.has_history
    number = int(hvd.allreduce(torch.tensor([int(old)], device="cpu"), name=f"{name}.number", op=hvd.Sum))
    steps = hvd.broadcast_object([state.get("step", 0) for _, state in _states(optimizer)], name=f"{name}.steps")
    for i, ((key, state), momentum, step) in enumerate(zip(_states(optimizer), kept, steps, strict=True)):
        if 0 < number < hvd.size():
            mine = momentum if old else torch.zeros_like(momentum)
            total = hvd.allreduce(mine.contiguous(), name=f"{name}.momentum{i}", op=hvd.Sum)
            if not old:
                momentum = total / number
        if number:
            state[key].copy_(momentum)
        if "step" in state:
            state["step"] = step
    optimizer._votes.has_history = number > 0
