"""Rules as a user writes them, and what they are in NumPy."""

import numpy as np
import simulation
import torch

import horovod_sign.torch as hvs


class Muon(hvs.Rule):
    """The sign of an orthogonalised momentum, changed in place; of vectors, of the momentum itself."""

    states = ("momentum",)

    def ballot(self, gradient, momentum):
        momentum.mul_(0.75).add_(gradient)
        return orthogonalised(momentum), momentum


class TwoMomenta(hvs.Rule):
    """Votes on the difference of a fast and a slow momentum, after two steps on gradients."""

    states = ("fast", "slow")
    warmup_steps = 2

    def __init__(self, fast: float = 0.5, slow: float = 0.875):
        self.fast, self.slow = fast, slow

    def ballot(self, gradient, fast, slow):
        fast, slow = self.fast * fast + gradient, self.slow * slow + gradient
        return (fast - slow).to(torch.float64), fast, slow


class Clipped(hvs.Rule):
    """Abstains where a gradient is small; no states."""

    def ballot(self, gradient):
        return gradient * (gradient.abs() > 0.01)


def orthogonalised(x: torch.Tensor) -> torch.Tensor:
    """By Newton and Schulz."""
    if x.ndim < 2:
        return x
    y = x.flatten(1)
    y = y / (y.norm() + 1e-7)
    for _ in range(3):
        z = y @ y.T
        y = 3.4445 * y + (-4.775 * z + 2.0315 * z @ z) @ y
    return y.view_as(x)


def _muon(g, m):
    m = m * np.float32(0.75) + g
    # Torch's own products: in which order a library adds, and so how it rounds, is its own affair.
    return orthogonalised(torch.from_numpy(m)).numpy(), m


RULES = {
    "Muon": (Muon(), simulation.Own(_muon, 1)),
    "TwoMomenta": (TwoMomenta(), simulation.TWO_MOMENTA),
    "Clipped": (Clipped(), simulation.Own(lambda g: (g * (np.abs(g) > np.float32(0.01)),), 0)),
}
