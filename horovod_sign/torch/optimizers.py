"""SignSGD, Signum, Lion, and any rule as plain torch optimizers: of one process, or voted on by `DistributedOptimizer`.

One step is x <- x - lr * (v + weight_decay * x), where v is the sign of what the worker votes on (on one process), or
the majority vote of all (distributed). Weight decay is decoupled (Bernstein et al. 2019, arXiv 1810.05291,
Algorithm 1).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from horovod_sign import rules
from horovod_sign.tensors.arithmetic import stepped
from horovod_sign.tensors.ballots import local_ballot, state_of
from horovod_sign.torch import broadcasting
from horovod_sign.torch.foreign import load_own


class SignOptimizer(torch.optim.Optimizer):
    """x <- x - lr * (sign(v) + weight_decay * x), v by a rule: what a worker votes on.

    Inside `hvs.DistributedOptimizer`, sign(v) is the majority vote of all ranks, each of which keeps the states of the
    rule for itself. They are part of the optimizer's state, under their names, float32 whatever the dtype of the
    parameter.

    Args:
        params: parameters or parameter groups.
        lr: how far each coordinate moves in a step.
        rule: an object of a class derived from `hvs.Rule`.
        weight_decay: decoupled.
        defaults: further options of groups, of a class derived from this one.

    Raises:
        TypeError: `rule` is none.
        ValueError: a negative lr or weight_decay.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float,
        rule: rules.Rule,
        weight_decay: float = 0.0,
        **defaults: Any,
    ) -> None:
        self._own_rule = rules.check_rule(rule)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **defaults})

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_own_rule": self._own_rule}  # torch's own has not all attributes

    def add_param_group(self, param_group: dict) -> None:
        super().add_param_group(param_group)
        try:
            group = self.param_groups[-1]
            rules.check_step(group["lr"], group["weight_decay"])
            self.rule(group)
        except ValueError:
            self.param_groups.pop()
            raise

    def rule(self, group: dict) -> rules.Rule:
        """What the parameters of `group` vote on."""
        return self._own_rule

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns the loss of `closure`, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    def state_dict(self) -> dict:
        root = broadcasting.asking_root()
        return super().state_dict() if root is None else broadcasting.broadcast_state(self, root, [self.state])

    def load_state_dict(self, state_dict: dict) -> None:
        known = {name for group in self.param_groups for name in self.rule(group).states}
        if not load_own(self, super().load_state_dict, state_dict, {*known, "step"} if known else known):
            return
        # torch casts state to the parameter's dtype; the states of a 16-bit parameter are float32 and stay so.
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for index, p in zip(saved, params, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if name in known and value is not None:
                    del self.state[p][name]
                    state_of(p, self.state[p], name).copy_(value)

    def _update(self) -> None:
        for group in self.param_groups:
            rule = self.rule(group)
            for p in group["params"]:
                if p.grad is not None:
                    gradient = p.grad.to_dense() if p.grad.is_sparse else p.grad
                    state = self.state[p]
                    take_step(p, sign(local_ballot(rule, gradient, state, rules.warming_up(rule, state))), group)


class SignSGD(SignOptimizer):
    """signSGD: x <- x - lr * (sign(g) + weight_decay * x).

    Inside `hvs.DistributedOptimizer`, sign(g) is the majority vote of all ranks. Zeros of either sign and NaN are 0:
    that coordinate does not move (but decays).

    Args:
        params: parameters or parameter groups.
        lr: how far each coordinate moves in a step; typically a tenth to a thirtieth of what SGD takes.
        weight_decay: decoupled.

    Reference: Bernstein et al. 2018, arXiv 1802.04434, Algorithm 1.
    """

    def __init__(
        self, params: Iterable[torch.Tensor] | Iterable[dict[str, Any]], lr: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, lr, rules.signsgd(), weight_decay)


class Signum(SignOptimizer):
    """Signum: m <- momentum * m + (1 - momentum) * g, then x <- x - lr * (sign(m) + weight_decay * x).

    Inside `hvs.DistributedOptimizer`, each worker keeps its own m of its own gradients, and sign(m) is the majority
    vote of all ranks. m is float32 whatever the dtype of the parameter. There is no bias correction. Coordinates of g
    that are not finite do not enter m.

    Args:
        params: parameters or parameter groups.
        lr: how far each coordinate moves in a step.
        momentum: in [0, 1).
        weight_decay: decoupled.
        warmup: vote on g instead of m for the first C(momentum) steps (Theorem 3: 54 steps for 0.9).

    Reference: Bernstein et al. 2018, arXiv 1802.04434, Algorithm 2.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup: bool = False,
    ) -> None:
        rule = rules.signum(momentum, warmup)
        super().__init__(params, lr, rule, weight_decay, momentum=momentum, warmup=warmup)

    def rule(self, group: dict) -> rules.Rule:
        return rules.signum(group["momentum"], group["warmup"])


class Lion(SignOptimizer):
    """Lion: x <- x - lr * (sign(beta_1 * m + (1 - beta_1) * g) + weight_decay * x), then
    m <- beta_2 * m + (1 - beta_2) * g.

    Inside `hvs.DistributedOptimizer` it is Distributed Lion with majority vote: each worker keeps its own m of its own
    gradients, and the sign is the majority vote of all ranks. m is float32 whatever the dtype of the parameter, and is
    the state "momentum_buffer", as Signum's. Coordinates of g that are not finite do not enter m.

    Args:
        params: parameters or parameter groups.
        lr: how far each coordinate moves in a step; a third to a tenth of what AdamW takes.
        betas: (beta_1, beta_2), each in [0, 1).
        weight_decay: decoupled; three to ten times what AdamW takes.

    Reference: Liu et al. 2024, arXiv 2404.00438, Algorithm 1; Chen et al. 2023, arXiv 2302.06675, Algorithm 2.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, rules.lion(*betas), weight_decay, betas=betas)

    def rule(self, group: dict) -> rules.Rule:
        return rules.lion(*group["betas"])


def sign(x: torch.Tensor) -> torch.Tensor:
    """-1, 0 or +1 in x's dtype; NaN is 0."""
    return torch.sign(x).nan_to_num_(nan=0.0)


def take_step(p: torch.Tensor, vote: torch.Tensor, group: dict) -> None:
    """x <- x - lr * (vote + weight_decay * x); 16-bit parameters are computed in float32 and rounded once."""
    p.copy_(stepped(p, vote, group["lr"], group["weight_decay"], group["weight_decay"] != 0.0))
