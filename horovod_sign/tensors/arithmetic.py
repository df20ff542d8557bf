"""What a worker votes on, and a step by a vote, by torch's operations: the arithmetic of csrc/, for any device.

Each operation rounds by itself. 16-bit numbers are computed in float32.
"""

import torch


def interpolated(
    gradient: torch.Tensor, m: torch.Tensor, betas: tuple[float, float], warm: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(what is voted on, the new momentum), by `rules`: both betas of a rule; while `warm` votes are on the gradient.

    Where the gradient is not finite, it is voted on, and m stays.
    """
    g, (vote, state) = gradient.to(torch.float32), betas
    finite = torch.isfinite(g)
    voted = gradient if warm else torch.where(finite, _mean(vote, m, g), g)
    return voted, torch.where(finite, _mean(state, m, g), m)


def stepped(
    x: torch.Tensor, vote: torch.Tensor, lr: float | torch.Tensor, weight_decay: float | torch.Tensor, decays: bool
) -> torch.Tensor:
    """x - lr * (vote + weight_decay * x), not yet rounded to the dtype of x; without decay its term is left out.

    Args:
        x, vote: parameters, and -1, 0 or +1.
        lr, weight_decay: numbers, or tensors of one in the dtype of the result.
        decays: whether weight_decay is not 0.
    """
    exact = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    x, step = x.detach().to(exact), vote.to(exact)
    if decays:
        step = x * weight_decay + step
    # Not add(alpha=-lr): that rounds once where the kernels round twice.
    return x - step * lr


def _mean(beta: float, m: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return m * beta + g * (1.0 - beta)
