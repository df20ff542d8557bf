"""Where signSGD fails: the three counterexamples of Karimireddy et al. 2019 (arXiv 1901.09847), and what helps.

All three by the package's own optimizers (`hvs.SignSGD`, `hvs.Signum`) and its majority vote; lr delta = 0.01.

1  f = x/4 on [-1, 1], gradient 4 with probability 1/4, else -1: its mean is 1/4, its sign is wrong with 3/4. x walks
   up to the worst point: the distance from 1 is j delta with probability (2/3) (1/3)^j, on average delta/2. More
   voters make it surer. A batch of 64 is right with p = P(Bin(64, 1/4) > 64/5) = 0.845 > 1/2, and x settles at delta
   r / (1 - r) above -1 with r = (1 - p)/p. (The condition that fails is the noise's symmetry; see
   error_probability.py.)
2  f = eps |x1 + x2| + |x1 - x2|, eps = 1/2, exact subgradients: the second term decides both signs, which are (1, -1)
   or (-1, 1), so that x1 + x2 stays what it was. From (1 + delta/2, 1 - delta/2) f stays at 2 eps + delta; the least
   is 0. (From (1, 1) itself the package moves, where |.|'s derivative at 0 is 0, as in PyTorch.)
3  f = <a1, x>^2 + <a2, x>^2, a = +-(1, -1) + eps (1, 1), one of the two at each step: each gradient is a multiple of
   its a, whose signs are (1, -1) or (-1, 1). From (1, 1), x1 + x2 stays 2, and f is at least 8 eps^2 = 2; the least
   is 0. A vote of any number of voters with one example each is of the same two, or a tie.

(Signum's momentum of 0.9 has a signal-to-noise ratio of 0.5 here: right in 7 of 10 steps, but wrong in runs.)

What helps is what averages before the sign is taken: a momentum (Signum), larger batches, and `hierarchical=True`,
which votes on the mean of a node's gradients. More voters do not. Error feedback, the paper's own remedy, is not in
this package.
"""

import math
import sys

import numpy as np
import torch
from ballots import majority
from reporting import FLOATS, VOTES, Progress, arguments, at_least, at_most, exit_status, finish, near, panels

import horovod_sign.torch as hvs

LR, EPS, VOTERS = 0.01, 0.5, 27
A = np.array([[1 + EPS, -1 + EPS], [-1 + EPS, 1 + EPS]])
STYLES = {"signSGD": VOTES, f"vote of {VOTERS}": "#e38fb0", "larger batch": FLOATS, "Signum, 0.9": "#2a6f97"}


def signsgd(x):
    return hvs.SignSGD([x], LR)


def signum(x):
    return hvs.Signum([x], LR, momentum=0.9)


def train(make, start, gradient, loss, steps: int, limit: float = math.inf) -> tuple[np.ndarray, np.ndarray]:
    """f before each step, and all x. `gradient` gets x; `limit`: x is projected to [-limit, limit]."""
    parameter = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    x = parameter.detach().numpy()  # the same memory
    optimizer, losses, points = make(parameter), np.empty(steps), np.empty((steps, len(start)))
    for step in range(steps):
        losses[step], points[step] = loss(x), x
        parameter.grad = torch.from_numpy(gradient(x))
        optimizer.step()
        np.clip(x, -limit, limit, out=x)
    return losses, points


def voted(gradient):
    """What 27 voters say, each by a gradient of its own: signSGD steps by its sign, which is itself."""
    return lambda x: majority(np.stack([gradient(x) for _ in range(VOTERS)])).astype(float)


def linear(rng, steps):
    """The first counterexample: all trainings by name."""

    def gradients(batch):
        return lambda x: np.where(rng.random((1, batch)) < 0.25, 4.0, -1.0).mean(1)

    def run(make, gradient):
        return train(make, [0.0], gradient, lambda x: x[0] / 4, steps, limit=1.0)

    return {
        "signSGD": run(signsgd, gradients(1)),
        f"vote of {VOTERS}": run(signsgd, voted(gradients(1))),
        "larger batch": run(signsgd, gradients(64)),
        "Signum, 0.9": run(signum, gradients(1)),
    }


def nonsmooth(steps):
    def loss(x):
        return EPS * abs(x[0] + x[1]) + abs(x[0] - x[1])

    def gradient(x):
        return EPS * np.sign(x[0] + x[1]) * np.array([1.0, 1.0]) + np.sign(x[0] - x[1]) * np.array([1.0, -1.0])

    start = [1 + LR / 2, 1 - LR / 2]
    methods = {"signSGD": signsgd, "Signum, 0.9": signum}
    return {name: train(make, start, gradient, loss, steps) for name, make in methods.items()}


def least_squares(rng, steps):
    def gradients(rows):
        def gradient(x):
            chosen = A[rows(rng)]
            return 2 * (chosen @ x) @ chosen

        return gradient

    def run(make, gradient):
        return train(make, [1.0, 1.0], gradient, lambda x: ((A @ x) ** 2).sum(), steps)

    one = gradients(lambda rng: [rng.integers(2)])
    return {
        "signSGD": run(signsgd, one),
        f"vote of {VOTERS}": run(signsgd, voted(one)),
        "larger batch": run(signsgd, gradients(lambda rng: [0, 1])),
        "Signum, 0.9": run(signum, one),
    }


def check(first, second, third) -> list:
    late = len(first["signSGD"][0]) // 2
    p = sum(math.comb(64, k) * 0.25**k * 0.75 ** (64 - k) for k in range(13, 65))
    r = (1 - p) / p
    x = {name: points[late:, 0].mean() for name, (_, points) in first.items()}
    sums = {name: np.abs(points.sum(1) - 2).max() for name, (_, points) in third.items()}
    f2 = {name: losses[late:].mean() for name, (losses, _) in second.items()}
    f3 = {name: losses[late:] for name, (losses, _) in third.items()}
    many = f"vote of {VOTERS}"
    return [
        near("1: signSGD, x (worst: 1, best: -1)", 1 - LR / 2, x["signSGD"], 0.003),
        at_least(f"1: {many}, x", 1 - LR / 2, x[many]),
        near("1: batch 64, x", -1 + LR * r / (1 - r), x["larger batch"], 0.003),
        at_most("1: Signum, x", -0.5, x["Signum, 0.9"]),
        near("2: signSGD, f (least: 0)", 2 * EPS + LR, f2["signSGD"], 1e-9),
        at_most("2: Signum, f", 0.15, f2["Signum, 0.9"]),
        near("3: signSGD, x1 + x2 moves by at most", 0.0, sums["signSGD"], 1e-9),
        near(f"3: {many}, x1 + x2 moves by at most", 0.0, sums[many], 1e-9),
        at_least("3: signSGD, f (least: 0)", 8 * EPS**2 - 1e-9, f3["signSGD"].min()),
        at_least(f"3: {many}, f", 8 * EPS**2 - 1e-9, f3[many].min()),
        at_most("3: both examples in a batch, f", 0.05, f3["larger batch"].mean()),
        at_most("3: Signum, f", 0.15, f3["Signum, 0.9"].mean()),
    ]


def main(argv=None):
    args = arguments(__doc__, "counterexamples", argv)
    rng = np.random.default_rng(args.seed)
    steps = 600 if args.fast else 3000
    torch.set_num_threads(1)
    with Progress(label="counterexample", total=3, unit="number") as progress:
        first = linear(rng, steps)
        progress.update()
        second = nonsmooth(steps)
        progress.update()
        third = least_squares(rng, steps)
        progress.update()
    return finish(check(first, second, third), draw([first, second, third]), args.out)


def draw(results):
    figure, axes = panels(3)
    titles = "1: x/4, skewed noise", "2: not smooth, no noise", "3: least squares, batch 1"
    for axis, trainings, title in zip(axes, results, titles, strict=True):
        for name, (losses, _) in trainings.items():
            axis.plot(losses[:1000], color=STYLES[name], lw=1.2, label=name)
        axis.set(xlabel="steps", title=title)
    axes[0].set_ylabel("f")
    axes[0].axhline(-0.25, color="#bbbbbb", lw=0.8, ls="--", zorder=0)
    for axis in axes[1:]:
        axis.axhline(0, color="#bbbbbb", lw=0.8, ls="--", zorder=0)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    sys.exit(exit_status(main()))
