"""What votes do on f = x^2/2, exactly: each coordinate is a walk on the points x0 + j lr, whose odds are binomial.

A voter's gradient is x plus its own noise, so that its sign is plus with probability p(x) (Gaussian noise: the normal
distribution function of x / sigma). The plus votes of M voters, of whom some invert theirs, are the sum of two binomial
variables, and the walk goes down by lr where they are more than half, up where less, and stays at a tie.
"""

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[float])


def gaussian(x: np.ndarray, sigma: float) -> np.ndarray:
    """The probability that x plus noise N(0, sigma^2) is positive; without noise, whether x is (0: one half)."""
    if sigma == 0:
        return 0.5 + 0.5 * np.sign(x)
    return 0.5 + 0.5 * _erf(np.asarray(x) / (sigma * math.sqrt(2)))


def _binomial(trials: int, p: np.ndarray) -> np.ndarray:
    """The probabilities of 0 to `trials` successes, of shape (trials + 1, *p.shape)."""
    return np.array([math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(trials + 1)])


def vote(p, voters: int, hostile: int = 0, one_bit: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities that the vote is +1 and that it is -1, where each honest voter votes +1 with probability p.

    Hostile voters invert their own noisy signs. The rest is ties, which with `one_bit` are +1.
    """
    p = np.asarray(p, float)
    honest, others = _binomial(voters - hostile, p), _binomial(hostile, 1 - p)
    counts = np.zeros((voters + 1, *p.shape))
    for j, probability in enumerate(others):
        counts[j : j + len(honest)] += probability * honest
    balance = 2 * np.arange(voters + 1) - voters
    plus = counts[(balance > 0) | (one_bit & (balance == 0))].sum(0)
    return plus, counts[balance < 0].sum(0)


def slope(voters: int, sigma: float, hostile: int = 0) -> float:
    """The mean vote near x = 0 is slope * x: (M - 2 hostile) 2 C(M - 1, floor(M / 2)) / 2^(M-1) / (sigma sqrt(2 pi)).

    For many honest voters that is 2 sqrt(M) / (pi sigma): it grows by sqrt(M).
    """
    plus_minus = 2 * (voters - 2 * hostile) * math.comb(voters - 1, voters // 2) / 2 ** (voters - 1)
    return plus_minus / (sigma * math.sqrt(2 * math.pi))


class Walk:
    """The distribution of a coordinate that starts from N(0, 1), or from a point, step by step.

    Args:
        lr: length of a step.
        sigma: standard deviation of each voter's noise.
        reach: the points lie between -reach and +reach, which nothing may come near.
        start: None: N(0, 1); else where it starts.
        options: of `vote`.
    """

    OFFSETS = 8  # the points are x0 + j lr, and x0 lies anywhere: this many lattices, shifted against each other

    def __init__(self, lr: float, sigma: float, reach: float, voters: int = 1, start: float | None = None, **options):
        n = math.ceil(reach / lr)
        shifts = (np.arange(self.OFFSETS) + 0.5) / self.OFFSETS if start is None else np.zeros(1)
        self.x = (start or 0.0) + lr * (np.arange(-n, n + 1) + shifts[:, None])
        density = np.exp(-(self.x**2) / 2) if start is None else np.abs(self.x - start) < lr / 2
        self.density = density / density.sum()
        self._plus, self._minus = vote(gaussian(self.x, sigma), voters, **options)

    def step(self, count: int = 1):
        for _ in range(count):
            down, up = self.density * self._plus, self.density * self._minus
            self.density = self.density - down - up
            self.density[:, :-1] += down[:, 1:]
            self.density[:, 1:] += up[:, :-1]

    def mean(self, of) -> float:
        """The expectation of a function of x."""
        return float((self.density * of(self.x)).sum())

    def loss(self) -> tuple[float, float]:
        """The expectation of x^2/2 and its standard deviation, of one coordinate."""
        mean = self.mean(lambda x: x**2 / 2)
        return mean, math.sqrt(max(self.mean(lambda x: x**4 / 4) - mean**2, 0.0))

    def losses(self, steps: int) -> list[float]:
        """The expectation of x^2/2 before each of so many steps, and after the last."""
        found = [self.loss()[0]]
        for _ in range(steps):
            self.step()
            found.append(self.loss()[0])
        return found


def stationary(lr: float, sigma: float, voters: int, **options) -> tuple[float, float]:
    """The expectations of x and of x^2/2 after very many steps.

    In balance as many walks go from x up to x + lr as come down: pi(x) P(vote -1 at x) = pi(x + lr) P(vote +1 at
    x + lr), which gives pi up to a factor.
    """
    x = lr * np.arange(-math.ceil(3 * sigma / lr), math.ceil(3 * sigma / lr) + 1)
    plus, minus = vote(gaussian(x, sigma), voters, **options)
    tiny = 1e-300
    log_pi = np.concatenate([[0.0], np.cumsum(np.log(minus[:-1] + tiny) - np.log(plus[1:] + tiny))])
    pi = np.exp(log_pi - log_pi.max())
    pi /= pi.sum()
    return float((pi * x).sum()), float((pi * x**2).sum() / 2)
