"""27 voters of whom 0 to 14 invert their gradients (Bernstein et al. 2019, toy experiment), on f = |x|^2/2, unit noise.

1,000 dimensions as in the paper, start N(0, I), lr 0.01. What must come out: a hostile voter votes +1 where its own
noisy gradient is negative, so the pluses are Bin(27 - h, p) + Bin(h, 1 - p), and the walk of `chains` gives E f at
each step. Up to 13 hostile voters the mean vote points to 0, with a slope that is (27 - 2h)/27 of the honest one, so
that f settles lower or higher, later or sooner; 14 turn it around, and f grows without end.

For ranks that really train a network, see byzantine_ranks.py.
"""

import math
import sys

import numpy as np
from ballots import descend
from chains import Walk
from reporting import THEORY, Progress, arguments, exit_status, finish, near, panels, shades

VOTERS, DIMENSIONS, LR = 27, 1000, 0.01


def expected(hostile: int, steps: int) -> tuple[list[float], float]:
    """E f before each step and after the last, and the standard deviation of f after the last."""
    walk = Walk(LR, 1.0, reach=5 + LR * steps, voters=VOTERS, hostile=hostile)
    losses = [DIMENSIONS * loss for loss in walk.losses(steps)]
    return losses, math.sqrt(DIMENSIONS) * walk.loss()[1]


def main(argv=None):
    args = arguments(__doc__, "byzantine", argv)
    rng = np.random.default_rng(args.seed)
    steps = 120 if args.fast else 600
    results, checks = {}, []
    for hostile in Progress([0, 8, 13, 14] if args.fast else range(15), "hostile", unit="number"):
        losses = descend(rng, rng.standard_normal(DIMENSIONS), LR, steps, VOTERS, hostile)
        theory, deviation = expected(hostile, steps)
        results[hostile] = losses, theory
        what = f"{hostile} of 27 hostile, f at step {steps:,}"
        checks.append(near(what, theory[-1], losses[-1], 4 * deviation, "4 standard deviations"))
    return finish(checks, draw(results), args.out)


def draw(results):
    figure, (left, right) = panels(2)
    drawn = [h for h in results if h in (0, 4, 8, 10, 11, 12, 13, 14)]
    colour = shades(drawn)
    for hostile in drawn:
        losses, theory = results[hostile]
        left.plot(losses, color=colour[hostile], lw=1, label=f"{hostile}")
        left.plot(theory, color=THEORY, lw=1, ls=":")
    left.set(
        xlabel="steps", ylabel="f = |x|²/2", yscale="log", title="27 voters, of whom so many hostile (dotted: exact)"
    )
    left.legend(frameon=False, fontsize=8, ncols=2)
    right.plot(list(results), [theory[-1] for _, theory in results.values()], color=THEORY, lw=1, ls=":", label="exact")
    right.plot(
        list(results), [losses[-1] for losses, _ in results.values()], "o", color=colour[drawn[0]], label="voted"
    )
    right.axvline(13.5, color="#bbbbbb", lw=0.8, ls="--")
    right.set(xlabel="hostile voters of 27", yscale="log", title=f"f after {len(losses) - 1:,} steps")
    right.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    sys.exit(exit_status(main()))
