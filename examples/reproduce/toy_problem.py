"""SGD and signSGD on a quadratic whose first coordinate alone is noisy (Bernstein et al. 2018, Figure A.1).

f = |x|^2/2 in 100 dimensions, noise N(0, 100^2) on the first gradient coordinate, start N(0, I), lr 0.001 (SGD) and
0.01 (signSGD), 10,000 steps, 50 repeats. What must come out, with q = (1 - lr)^(2k) after k steps:

SGD      x <- (1 - lr) x - lr noise, so E x^2 = q of each coordinate, plus lr^2 100^2 (1 - q) / (1 - (1 - lr)^2) of
         the first: E f = 8.92 at step 1,000 and 2.50 at 10,000, whence it moves no more.
signSGD  99 coordinates walk to 0 and then go to and fro about it, uniform in (-lr, lr): 99 lr^2/6 = 0.0017. The first
         goes down by lr with probability Phi(x/100): E x^2 <- E x^2 (1 - 2 lr a) + lr^2 with a = sqrt(2/pi)/100 while
         |x| is far below 100: E f = 0.474 at step 1,000 and 0.353 at 10,000. (`chains` has the walk without the
         approximation: the same to four digits.)
"""

import math
import sys

import numpy as np
from ballots import majority
from chains import Walk
from reporting import FLOATS, THEORY, VOTES, Progress, arguments, exit_status, finish, near, panels

DIMENSIONS, NOISE = 100, 100.0
LR = {"SGD": 0.001, "signSGD": 0.01}
COLOURS = {"SGD": FLOATS, "signSGD": VOTES}


def expected_sgd(step: int) -> float:
    q = (1 - LR["SGD"]) ** (2 * step)
    first = LR["SGD"] ** 2 * NOISE**2 * (1 - q) / (1 - (1 - LR["SGD"]) ** 2)
    return (DIMENSIONS * q + first) / 2


def expected_signsgd(step: int) -> float:
    """Once the coordinates without noise have arrived."""
    lr, a = LR["signSGD"], math.sqrt(2 / math.pi) / NOISE
    q = (1 - 2 * lr * a) ** step
    return (q + lr / (2 * a) * (1 - q)) / 2 + (DIMENSIONS - 1) * lr**2 / 6


def walks() -> tuple[Walk, Walk]:
    """The exact distributions of a coordinate with noise and of one without."""
    return Walk(LR["signSGD"], NOISE, reach=12), Walk(LR["signSGD"], 0.0, reach=8)


def train(rng, repeats: int, steps: int, every: int):
    """f of each repeat after every so many steps, by both methods: arrays of shape (records, repeats)."""
    start = rng.standard_normal((repeats, DIMENSIONS))
    x = {name: start.copy() for name in LR}
    records = {name: [(start**2).sum(1) / 2] for name in LR}
    for step in Progress(range(1, steps + 1), f"{repeats} repeats"):
        for name in LR:
            gradient = x[name].copy()
            gradient[:, 0] += NOISE * rng.standard_normal(repeats)
            if name == "signSGD":
                gradient = majority(gradient.reshape(1, -1)).reshape(gradient.shape)
            x[name] -= LR[name] * gradient
            if step % every == 0:
                records[name].append((x[name] ** 2).sum(1) / 2)
    return {name: np.array(values) for name, values in records.items()}


def main(argv=None):
    args = arguments(__doc__, "toy-problem", argv)
    rng = np.random.default_rng(args.seed)
    steps, every = (2000, 200) if args.fast else (10_000, 100)
    noisy, still = walks()
    exact = []
    for k in range(0, steps + 1, every):
        noisy.step(every if k else 0)
        still.step(every if k and k <= 1200 else 0)  # by then all have arrived, and an even number more is no change
        exact.append(noisy.loss()[0] + (DIMENSIONS - 1) * still.loss()[0])

    checks, drawn = [], None
    for repeats in [200] if args.fast else [50, 1000]:
        losses = train(rng, repeats, steps, every)
        drawn = losses if drawn is None else drawn
        for step in (1000, steps):
            for name, expected in (("SGD", expected_sgd), ("signSGD", expected_signsgd)):
                measured = losses[name][step // every]
                error = 3 * measured.std(ddof=1) / math.sqrt(repeats)
                what = f"{name}, step {step:,}, mean of {repeats:,}"
                checks.append(near(what, expected(step), measured.mean(), error, "3 standard errors"))
    for step in (1000, steps):
        checks.append(near(f"the walk itself, step {step:,}", expected_signsgd(step), exact[step // every], 5e-4))
    return finish(checks, draw(drawn, exact, every), args.out)


def draw(losses, exact, every):
    figure, (left, right) = panels(2)
    for name, values in losses.items():
        at = every * np.arange(len(values))
        mean, deviation = values.mean(1), values.std(1, ddof=1)
        theory = exact if name == "signSGD" else [expected_sgd(k) for k in at]
        for axis in (left, right):
            axis.plot(at, mean, color=COLOURS[name], label=f"{name}, lr {LR[name]:g}")
            axis.plot(at, theory, color=THEORY, lw=1, ls=":", label="derived" if name == "signSGD" else None)
        right.fill_between(at, np.maximum(mean - deviation, 0), mean + deviation, color=COLOURS[name], alpha=0.2, lw=0)
    left.set(xlabel="steps", ylabel="f = |x|²/2", yscale="log", title=f"mean of {values.shape[1]} repeats")
    left.legend(frameon=False, fontsize=8, loc="upper right")
    right.set(xlabel="steps", ylim=(0, 12), title="the same, shaded: ± 1 standard deviation")
    return figure


if __name__ == "__main__":
    sys.exit(exit_status(main()))
