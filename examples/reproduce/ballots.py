"""Many voters in one process, by the package's own packing and tally; and the gradients of a quadratic for them."""

import numpy as np

from horovod_sign import algebra
from horovod_sign.algebra import native
from horovod_sign.rules import Interpolation


def majority(votes_on: np.ndarray, abstain: bool = True) -> np.ndarray:
    """The majority vote, int8 of n coordinates.

    Args:
        votes_on: what each voter votes on, of shape (voters, n): bits are packed, tallied and unpacked as on ranks.
        abstain: as everywhere in the package; False: zeros and ties count as +1.
    """
    return _count([algebra.pack_ballot(row, abstain)[:2] for row in votes_on], abstain, votes_on.shape[1])


def _count(ballots, abstain: bool, n: int) -> np.ndarray:
    signs, nonzeros = zip(*ballots, strict=True)
    sign, nonzero = algebra.tally(signs, nonzeros, one_bit=not abstain)
    return algebra.unpack_votes(sign, nonzero, n)


def descend(rng, start: np.ndarray, lr: float, steps: int, voters: int, hostile: int = 0) -> np.ndarray:
    """f = |x|^2/2 by the vote of noisy gradients (unit noise): before each step, and after the last."""
    x, losses = start.copy(), np.empty(steps + 1)
    for step in range(steps):
        losses[step] = (x**2).sum() / 2
        x -= lr * majority(noisy_gradients(rng, x, voters, 1.0, hostile))
    losses[steps] = (x**2).sum() / 2
    return losses


class Voters:
    """Voters that vote by a rule, each with a momentum of its own if the rule has one.

    Args:
        rule: `signsgd()`, `signum()` or `lion()` of `horovod_sign.rules`.
        voters: how many.
        n: how many coordinates.
        abstain: as in `majority`.
    """

    def __init__(self, rule: Interpolation, voters: int, n: int, abstain: bool = True):
        self._rule, self._n, self._abstain, self._steps = rule, n, abstain, 0
        self._momenta = np.zeros((voters, n), np.float32)

    def vote(self, gradients: np.ndarray) -> np.ndarray:
        """The majority vote on float32 gradients of shape (voters, n)."""
        self._steps += 1
        if self._rule.takes_gradient:
            return majority(gradients, self._abstain)
        ballots = [self._ballot(g, m) for g, m in zip(gradients, self._momenta, strict=True)]
        return _count(ballots, self._abstain, self._n)

    def _ballot(self, gradient, momentum):
        segments = native.Segments([(np.ascontiguousarray(gradient), self._n)])
        sign, nonzero = np.empty((2, segments.plane_bytes), np.uint8)
        zeros, nans = algebra.kernels().interpolate_pack(
            "float32",
            native.ABSTAIN if self._abstain else native.ONEBIT,
            segments,
            [momentum],
            *self._rule.betas,
            sign,
            nonzero if self._abstain else None,
            warm=self._steps <= self._rule.warmup_steps,
        )
        return sign, nonzero if zeros + nans else None


def noisy_gradients(rng, x: np.ndarray, voters: int, noise: float, hostile: int = 0) -> np.ndarray:
    """Of f = x^2/2, for each voter: x plus its own Gaussian noise. The first `hostile` of them send the negative."""
    gradients = rng.standard_normal((voters, x.size), np.float32)
    gradients *= noise
    gradients += x.astype(np.float32)
    gradients[:hostile] *= -1
    return gradients
