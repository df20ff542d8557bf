"""SignSGD and Signum as plain torch optimizers: right on one process, and voted on in `DistributedOptimizer`.

One step is x <- x - lr * (v + weight_decay * x), where v is the sign of what the worker votes on (on one process), or
the majority vote of all (distributed). Weight decay is decoupled (Bernstein et al. 2019, arXiv 1810.05291,
Algorithm 1).
"""

import torch

from horovod_sign import rules
from horovod_sign.tensors.arithmetic import interpolated, stepped
from horovod_sign.torch import broadcasting
from horovod_sign.torch.foreign import load_own


class SignOptimizer(torch.optim.Optimizer):
    """What SignSGD and Signum share. A subclass says by `rule(group)` what is voted on."""

    _state_names: frozenset[str] = frozenset()

    def __init__(self, params, lr: float, weight_decay: float, **defaults):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **defaults})

    def add_param_group(self, param_group: dict):
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
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure=None):
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

    def load_state_dict(self, state_dict: dict):
        if not load_own(self, super().load_state_dict, state_dict, self._state_names):
            return
        # torch casts state to the parameter's dtype; the momentum of a 16-bit parameter is float32 and stays so.
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for index, p in zip(saved, params, strict=True):
            momentum = state_dict["state"].get(index, {}).get("momentum_buffer")
            if momentum is not None:
                del self.state[p]["momentum_buffer"]
                momentum_buffer(p, self.state[p]).copy_(momentum)

    def _update(self):
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

    def __init__(self, params, lr: float, weight_decay: float = 0.0):
        super().__init__(params, lr, weight_decay)

    def rule(self, group: dict) -> rules.Rule:
        return rules.signsgd()


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

    _state_names = frozenset({"momentum_buffer", "step"})

    def __init__(self, params, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, warmup: bool = False):
        super().__init__(params, lr, weight_decay, momentum=momentum, warmup=warmup)

    def rule(self, group: dict) -> rules.Rule:
        return rules.signum(group["momentum"], group["warmup"])


def momentum_buffer(p: torch.Tensor, state: dict) -> torch.Tensor:
    """The float32 momentum in `state`, made of zeros in the memory layout of `p` if it is not there yet."""
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(p, dtype=torch.float32, memory_format=torch.preserve_format)
    return state["momentum_buffer"]


def local_ballot(rule: rules.Rule, gradient: torch.Tensor, state: dict, warm: bool) -> torch.Tensor:
    """What this worker votes on, by `rules`; its momentum is updated."""
    if not rule.has_momentum:
        return gradient
    m = momentum_buffer(gradient, state)
    voted, kept = interpolated(gradient, m, (rule.beta_vote, rule.beta_state), warm)
    m.copy_(kept)
    return voted


def sign(x: torch.Tensor) -> torch.Tensor:
    """-1, 0 or +1 in x's dtype; NaN is 0."""
    return torch.sign(x).nan_to_num_(nan=0.0)


def take_step(p: torch.Tensor, vote: torch.Tensor, group: dict):
    """x <- x - lr * (vote + weight_decay * x); 16-bit parameters are computed in float32 and rounded once."""
    p.copy_(stepped(p, vote, group["lr"], group["weight_decay"], group["weight_decay"] != 0.0))
