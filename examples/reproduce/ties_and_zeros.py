"""Ties and zeros: what voting +1 on them does (the one-bit form), and what abstaining does not.

An even number of voters ties. With sign(0) = +1 a tie of votes on f = x^2/2 (unit noise) pushes x down, and it settles
where the vote is +1 half of the time. Two voters: P(both minus) = Phi(-x)^2 = 1/2 at x = -0.545; the mean is a little
elsewhere, as x jumps by lr, which the balance of the walk in `chains` says exactly. Where ties are 0 the mean is 0.

A parameter that sees no gradient (an embedding's row of a token that does not occur): sign(0) = +1 moves it by -lr at
every step, whatever the others do; with abstention it stays where it is, to the bit.
"""

import sys
from statistics import NormalDist

import numpy as np
from ballots import majority, noisy_gradients
from chains import stationary, vote
from reporting import FLOATS, THEORY, VOTES, Progress, arguments, exit_status, finish, near, panels

DIMENSIONS, LR = 1000, 0.01


def fixed_point(voters: int) -> float:
    """Where one-bit votes are +1 half of the time, by bisection."""
    low, high = 0.0, 0.5  # the probability that a voter votes +1
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if vote(middle, voters, one_bit=True)[0] < 0.5 else (low, middle)
    return NormalDist().inv_cdf(low) if voters % 2 == 0 else 0.0


def settle(rng, voters: int, abstain: bool, steps: int) -> float:
    """The mean of x over the coordinates and steps, once it has settled."""
    x, total, arrived = np.zeros(DIMENSIONS), 0.0, 700
    for step in range(arrived + steps):
        x -= LR * majority(noisy_gradients(rng, x, voters, 1.0), abstain)
        total += x.mean() if step >= arrived else 0.0
    return total / steps


def embedding(rng, abstain: bool, steps: int) -> np.ndarray:
    """How far the rows of an embedding have moved on average, by step: (seen, never seen). 2 voters, rows of 64."""
    rows = rng.standard_normal((2, 64)).astype(np.float32)
    start, moved = rows.copy(), np.zeros((steps + 1, 2))
    for step in range(steps):
        gradients = np.zeros((2, 2, 64), np.float32)
        gradients[:, 0] = rows[0] + rng.standard_normal((2, 64))
        rows -= np.float32(LR) * majority(gradients.reshape(2, -1), abstain).reshape(rows.shape)
        moved[step + 1] = (rows - start).mean(1)
    return moved


def main(argv=None):
    args = arguments(__doc__, "ties-and-zeros", argv)
    rng = np.random.default_rng(args.seed)
    sizes, steps = ([2, 4], 300) if args.fast else ([1, 2, 3, 4, 6, 8, 16, 32], 1500)
    checks = [near("2 voters, sign(0) = +1: fixed point", -0.545, fixed_point(2), 5e-4)]
    results = {}
    for voters in Progress(sizes, "voters", unit="number"):
        for abstain in (True, False):
            results[voters, abstain] = settle(rng, voters, abstain, steps)
            expected = round(stationary(LR, 1.0, voters, one_bit=not abstain)[0], 6) + 0.0
            what = f"{voters} voters, {'ties are 0' if abstain else 'sign(0) = +1'}: mean of x"
            checks.append(near(what, expected, results[voters, abstain], 0.01))
    moved = {abstain: embedding(rng, abstain, 1000) for abstain in (True, False)}
    checks.append(near("row never seen, ties and zeros are 0: moved in 1,000 steps", 0.0, moved[True][-1, 1], 0.0))
    checks.append(near("row never seen, sign(0) = +1: moved in 1,000 steps", -10.0, moved[False][-1, 1], 1e-3))
    return finish(checks, draw(results, moved), args.out)


def draw(results, moved):
    figure, (left, right) = panels(2)
    sizes = sorted({voters for voters, _ in results})
    even = range(2, max(sizes) + 1, 2)
    left.plot(even, [fixed_point(v) for v in even], color=THEORY, lw=1, ls=":", label="derived")
    for abstain, colour, label in ((False, FLOATS, "sign(0) = +1"), (True, VOTES, "ties and zeros are 0 (default)")):
        left.plot(sizes, [results[v, abstain] for v in sizes], "o", color=colour, label=label)
        right.plot(moved[abstain][:, 1], color=colour, label=label)
    left.axhline(0, color="#bbbbbb", lw=0.8, zorder=0)
    left.set(xlabel="voters", ylabel="where x settles", title="f = x²/2, unit noise: least at 0")
    left.legend(frameon=False, fontsize=8, loc="lower right")
    right.set(xlabel="steps", ylabel="moved by", title="an embedding's row that no batch touches, lr 0.01")
    right.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    sys.exit(exit_status(main()))
