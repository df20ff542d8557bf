"""How often the vote is wrong, counted and by the exact binomial tail, with and without adversaries; where it fails.

A voter whose gradient is 1 plus noise N(0, 1/S^2) has the wrong sign with probability p = Phi(-S), where S is the
signal-to-noise ratio. M voters are wrong with probability P(B > M/2) with B ~ Bin(M, p), and tie with P(B = M/2); if
some invert their own noisy sign, B ~ Bin(honest, p) + Bin(hostile, 1 - p).

The bound: with q = 1 - p - 1/2 each voter's edge, the number of right votes has mean M/2 + M (1 - 2 alpha) q and
variance M (1/4 - q^2), alpha being the hostile share. Cantelli's inequality and 1 / (1 + z^2) <= 1 / (2z) give
P(wrong) <= sqrt((1/(4 q^2) - 1) / M) / (2 (1 - 2 alpha)), and Gauss's inequality for symmetric noise with one peak
gives 1/(4 q^2) - 1 <= 4 / S^2: P(wrong) <= 1 / ((1 - 2 alpha) sqrt(M) S) (Bernstein et al. 2018, Theorem 2 (b), and
2019, Theorem 2).

Where noise is neither: a gradient that is -1 with probability 0.6 and 4 with probability 0.4 has mean 1, and its sign
is wrong with 0.6. More voters make the vote wrong more surely (the mean of as many gradients: right).
"""

import math
import sys

import numpy as np
from ballots import majority, noisy_gradients
from chains import gaussian, vote
from reporting import FLOATS, THEORY, Check, Progress, arguments, at_most, exit_status, finish, panels, shades

SKEWED = ((-1.0, 0.6), (4.0, 0.4))  # a gradient with mean 1: value, probability
SURE = 4.5  # standard errors: one of a thousand cells is beyond with probability 0.007


def count(rng, ratio: float, voters: int, hostile: int, trials: int) -> tuple[float, float]:
    """The shares of wrong votes and of ties, on gradients whose true value is 1."""
    gradients = noisy_gradients(rng, np.ones(trials), voters, 1 / ratio, hostile)
    votes = majority(gradients)
    return np.mean(votes < 0), np.mean(votes == 0)


def count_skewed(rng, voters: int, trials: int) -> tuple[float, float]:
    """The shares of wrong votes, and of means of as many gradients that have the wrong sign."""
    (low, probability), (high, _) = SKEWED
    gradients = np.where(rng.random((voters, trials)) < probability, low, high)
    return np.mean(majority(gradients) < 0), np.mean(gradients.mean(0) < 0)


def compare(what: str, expected: list[float], measured: list[float], trials: int) -> Check:
    """One line for many probabilities: that which is farthest off, in standard errors."""
    off = [
        abs(m - e) / math.sqrt(max(e * (1 - e), 1 / trials) / trials) for e, m in zip(expected, measured, strict=True)
    ]
    worst = int(np.argmax(off))
    said = f"{SURE} standard errors"
    figures = f"{expected[worst]:.4g}", f"{measured[worst]:.4g} ({off[worst]:.1f} off)"
    return Check(f"{what}: {len(off)} probabilities, the farthest", *figures, said, off[worst] <= SURE)


def main(argv=None):
    args = arguments(__doc__, "error-probability", argv)
    rng = np.random.default_rng(args.seed)
    trials = 10_000 if args.fast else 100_000
    ratios = [0.1, 0.3, 1.0] if args.fast else [0.1, 0.2, 0.3, 0.5, 0.7, 1.0]
    sizes = [1, 2, 9, 27] if args.fast else [1, 2, 3, 4, 5, 7, 9, 13, 16, 19, 27]
    checks, results = [], {"wrong": {}, "hostile": {}}

    expected, measured, excess = [], [], []
    for voters in Progress(sizes, "voters", unit="number"):
        for ratio in ratios:
            wrong, tie = count(rng, ratio, voters, 0, trials)
            right, error = (float(p) for p in vote(gaussian(1.0, 1 / ratio), voters))
            expected += [error, 1 - right - error]
            measured += [wrong, tie]
            excess.append(wrong / min(1 / (math.sqrt(voters) * ratio), 1))
            results["wrong"][voters, ratio] = wrong
    checks.append(compare("wrong votes and ties", expected, measured, trials))
    checks.append(at_most("wrong votes over 1 / (sqrt(M) S), the largest", 1.0, max(excess)))

    expected, measured, excess = [], [], []
    for hostile in Progress([0, 8, 14] if args.fast else range(0, 19), "hostile of 27", unit="number"):
        for ratio in ratios:
            wrong, _ = count(rng, ratio, 27, hostile, trials)
            expected.append(float(vote(gaussian(1.0, 1 / ratio), 27, hostile)[1]))
            measured.append(wrong)
            if hostile < 13.5:
                excess.append(wrong * (1 - 2 * hostile / 27) * math.sqrt(27) * ratio)
            results["hostile"][hostile, ratio] = wrong
    checks.append(compare("27 voters, some hostile", expected, measured, trials))
    checks.append(at_most("the same over 1 / ((1 - 2 alpha) sqrt(M) S)", 1.0, max(excess)))

    odd = [v for v in sizes if v % 2]
    skewed = {voters: count_skewed(rng, voters, trials) for voters in odd}
    expected = [float(vote(0.4, voters)[1]) for voters in odd]
    checks.append(compare("skewed noise, wrong votes", expected, [skewed[v][0] for v in odd], trials))
    said = Check("skewed noise, 27 voters: vote worse than 1 voter, mean better", *_said(skewed))
    return finish([*checks, said], draw(results, skewed, ratios, odd), args.out)


def _said(skewed) -> tuple[str, str, str, bool]:
    (vote_one, mean_one), (vote_many, mean_many) = skewed[1], skewed[27]
    exact = f"{float(vote(0.4, 27)[1]):.3f}"
    return exact, f"{vote_many:.3f}; mean {mean_many:.3f}", "order", vote_many > vote_one and mean_many < mean_one


def draw(results, skewed, ratios, odd):
    figure, (left, middle, right) = panels(3)
    colour, ms = shades(ratios), np.arange(1, 28, 2)
    for ratio in ratios:
        p = gaussian(1.0, 1 / ratio)
        left.plot(ms, [vote(p, m)[1] for m in ms], color=colour[ratio], lw=1)
        left.plot(odd, [results["wrong"][m, ratio] for m in odd], "o", ms=4, color=colour[ratio], label=f"{ratio:g}")
        middle.plot(range(19), [vote(p, 27, h)[1] for h in range(19)], color=colour[ratio], lw=1)
        hostile = sorted({h for h, _ in results["hostile"]})
        middle.plot(hostile, [results["hostile"][h, ratio] for h in hostile], "o", ms=4, color=colour[ratio])
    left.set(
        xlabel="voters",
        ylabel="share of wrong votes",
        yscale="log",
        ylim=(1e-5, 0.7),
        title="symmetric noise (lines: exact)",
    )
    left.legend(title="signal to noise", frameon=False, fontsize=8, title_fontsize=8, loc="lower left")
    middle.axvline(13.5, color="#bbbbbb", lw=0.8, ls="--")
    middle.set(xlabel="hostile voters of 27", ylim=(0, 1), xticks=range(0, 19, 3), title="some invert their sign")
    right.plot(ms, [vote(0.4, m)[1] for m in ms], color=THEORY, lw=1, label="exact")
    right.plot(odd, [skewed[m][0] for m in odd], "o", ms=4, color=colour[ratios[-1]], label="vote")
    right.plot(odd, [skewed[m][1] for m in odd], "s", ms=4, color=FLOATS, label="mean of the gradients")
    right.set(xlabel="voters", ylim=(0, 1), title="skewed: -1 with 0.6, 4 with 0.4")
    right.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    sys.exit(exit_status(main()))
