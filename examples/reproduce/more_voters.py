"""The more voters, the less noise: f = |x|^2/2 in 1,000 dimensions, unit noise, 1 to 81 voters (sqrt(M) of Theorem 2).

Bernstein et al. 2018, Theorem 2 (b): where noise is symmetric with one peak, M voters act as if it were sigma /
sqrt(M). What must come out at lr delta, after long: near 0 the mean vote is a x with a = `chains.slope`, so E x^2
changes in a step by -2 delta a E x^2 + delta^2 P(no tie). Hence f settles at 1,000 delta P(no tie) / (4 a), which
falls by 1 / sqrt(M) where M is large: exactly, by balance of the walk, 3.14 for 1 voter and 0.44 for 81. An even
number votes as the odd one below it, but for its ties, which take no step: less noise at the same speed.
"""

import sys

import numpy as np
from ballots import descend
from chains import Walk, slope, stationary
from reporting import THEORY, Progress, arguments, exit_status, finish, panels, shades, within

DIMENSIONS, LR = 1000, 0.01
CURVES = 400  # steps drawn


def main(argv=None):
    args = arguments(__doc__, "more-voters", argv)
    rng = np.random.default_rng(args.seed)
    every = [1, 2, 3, 9] if args.fast else [1, 2, 3, 4, 9, 16, 27, 81]
    relaxations = 10 if args.fast else 60
    checks, curves, settled = [], {}, {}
    for voters in Progress(every, "voters", unit="number"):
        relaxation = 1 / (LR * slope(voters, 1.0))  # steps in which E x falls by e near 0
        arrived = int(6 * relaxation) + 300
        steps = arrived + int(relaxations * relaxation)
        losses = descend(rng, rng.standard_normal(DIMENSIONS), LR, steps, voters)[:steps]
        curves[voters] = losses[:CURVES]
        settled[voters] = losses[arrived:].mean()
        expected = DIMENSIONS * stationary(LR, 1.0, voters)[1]
        checks.append(within(f"{voters} voters, f after long", expected, settled[voters], 5))
    odd = [v for v in every if v % 2]
    power = np.polyfit(np.log(odd[1:]), np.log([settled[v] for v in odd[1:]]), 1)[0]
    expected = np.polyfit(np.log(odd[1:]), np.log([stationary(LR, 1.0, v)[1] for v in odd[1:]]), 1)[0]
    checks.append(within(f"f falls by M to the power of ({odd[1]} to {odd[-1]} voters)", expected, power, 8))
    return finish(checks, draw(curves, settled), args.out)


def draw(curves, settled):
    figure, (left, right) = panels(2)
    colour = shades(curves)
    for voters, losses in curves.items():
        if voters % 2:
            left.plot(losses, color=colour[voters], label=f"{voters}")
            walk = Walk(LR, 1.0, reach=4 + LR * CURVES + 1, voters=voters)
            theory = [DIMENSIONS * loss for loss in walk.losses(len(losses) - 1)]
            left.plot(theory, color=THEORY, lw=1, ls=":")
    left.set(
        xlabel="steps", ylabel="f = |x|²/2", yscale="log", title="1,000 dimensions, unit noise, lr 0.01 (dotted: exact)"
    )
    left.legend(title="voters", frameon=False, fontsize=8, title_fontsize=8)
    numbers = list(settled)
    for voters in numbers:
        right.plot(voters, settled[voters], "o", color=colour[voters], mfc=None if voters % 2 else "white")
    for parity, label in ((1, "derived, odd numbers"), (0, "derived, even numbers")):
        xs = [v for v in range(1, max(numbers) + 1) if v % 2 == parity]
        theory = [DIMENSIONS * stationary(LR, 1.0, v)[1] for v in xs]
        right.plot(xs, theory, color=THEORY, lw=1, ls=":-"[parity], label=label)
    right.set(xlabel="voters M", ylabel="f after long", xscale="log", yscale="log", title="f falls by about 1/√M")
    right.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    sys.exit(exit_status(main()))
