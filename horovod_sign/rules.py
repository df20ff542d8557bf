"""What a worker votes on: a small function of its gradient and its own state. The seam for another method.

    v = beta_vote  * m + (1 - beta_vote)  * g      the worker votes sign(v)
    m = beta_state * m + (1 - beta_state) * g      kept in float32, by each worker, never sent

signSGD has no state and votes on g (beta_vote = 0); Signum votes on its new momentum (both betas equal).

A gradient coordinate that is not finite never enters m, which keeps its value there; for that step the worker votes
the sign of g itself, so an infinity has its sign and a NaN abstains.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """What a worker votes on, by the two equations above.

    Attributes:
        beta_vote: weight of m in the vote, in [0, 1).
        beta_state: weight of the old m in the new one, in [0, 1); None: no momentum is kept, votes are on g.
        warmup_steps: for so many steps votes are on g while m fills.
    """

    beta_vote: float = 0.0
    beta_state: float | None = None
    warmup_steps: int = 0

    @property
    def has_momentum(self) -> bool:
        """Whether the rule keeps a momentum for each coordinate."""
        return self.beta_state is not None


def signsgd() -> Rule:
    """signSGD: vote on the gradient (Bernstein et al. 2018, arXiv 1802.04434, Algorithm 1)."""
    return Rule()


def signum(momentum: float = 0.9, warmup: bool = False) -> Rule:
    """Signum: vote on the momentum m = beta*m + (1-beta)*g, without bias correction (ibid., Algorithm 2).

    Args:
        momentum: beta, in [0, 1).
        warmup: vote on g for the first C(beta) steps while m fills, as Theorem 3 assumes.

    Raises:
        ValueError: momentum is outside [0, 1).
    """
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum must be at least 0 and less than 1, got {momentum!r}")
    return Rule(momentum, momentum, warmup_length(momentum) if warmup else 0)


def warmup_length(momentum: float) -> int:
    """C(beta), steps: the least C with C/2 beta^C <= 1/((1-beta^2)(C+1)) and beta^(C+1) <= 1/2 (ibid., Theorem 3).

    C(0.5) = 1, C(0.9) = 54, C(0.99) = 894.
    """
    c = 1
    while c / 2 * momentum**c > 1 / ((1 - momentum**2) * (c + 1)) or momentum ** (c + 1) > 0.5:
        c += 1
    return c


def check_step(lr: float, weight_decay: float):
    """Raises ValueError unless both are numbers that are at least 0 (NaN is not)."""
    if not lr >= 0.0:
        raise ValueError(f"lr must be at least 0, got {lr!r}")
    if not weight_decay >= 0.0:
        raise ValueError(f"weight_decay must be at least 0, got {weight_decay!r}")


def choose_rule(own: Rule | None, compression: Rule | None, optimizer: str) -> Rule:
    """The rule of a DistributedOptimizer around an optimizer.

    Args:
        own: the rule of the optimizer itself if it is SignSGD or Signum, else None.
        compression: the rule of the `compression` argument, or None.
        optimizer: the optimizer's class name, for the error.

    Returns:
        The optimizer's own rule, else that of `compression`, else signSGD: the votes are the optimizer's gradients.

    Raises:
        ValueError: both have one.
    """
    if own is not None and compression is not None:
        raise ValueError(
            f"{optimizer} already says what each worker votes on: leave out compression=, or wrap another optimizer "
            "(for example SGD), whose gradients the votes then are"
        )
    return own or compression or signsgd()


def warming_up(rule: Rule, state: dict) -> bool:
    """Counts a step in `state` and says whether its votes are on the gradient."""
    if not rule.warmup_steps:
        return False
    state["step"] = state.get("step", 0) + 1
    return state["step"] <= rule.warmup_steps
