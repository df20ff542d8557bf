"""Shards that differ: workers that hold one class of the images each, where the vote loses to averaging; what helps.

Why it must fail, in one dimension: three workers with f_m = (x - c_m)^2 / 2 and c = 0, 0, 3. The mean of gradients
leads to the mean of the c, 1, which is the least of the sum; the vote leads to their median, 0. In a classifier whose
ten workers hold a class each, nine of ten want each output lower at every step, whatever the image: the vote has no
more to say (Chen et al. 2019, arXiv 1906.01736, on medians; Bernstein et al. prove theirs for workers that draw
alike).

What helps: shuffle before sharding (as DistributedSampler does); else noise of each worker's own on what it votes on,
so large that the mean vote becomes proportional to the mean of gradients (ibid.); not momentum, since the workers'
differences stay.

A perceptron of 196-64-10 on Fashion-MNIST at 14 x 14 (with --fast on patterns), 10 workers, the best learning rate
of a grid for each line.
"""

import sys

import numpy as np
from ballots import majority
from reporting import FLOATS, VOTES, Check, Progress, arguments, at_least, exit_status, finish, near, panels
from training import Method, load, shuffled, sorted_by_label, train

from horovod_sign import rules

WORKERS = 10


def lines(fast: bool):
    """(method, whether shards are sorted, grid of learning rates)"""
    sgd, signsgd = Method("SGD, mean of gradients"), Method("signSGD by vote", rules.signsgd())
    signum = Method("Signum by vote", rules.signum(0.9))
    noisy = [signsgd._replace(name=f"vote with noise {noise:g}", noise=noise) for noise in (0.003, 0.01, 0.03, 0.1)]
    if fast:
        return [(sgd, True, [0.3]), (signsgd, True, [0.003]), (signsgd, False, [0.003]), (noisy[2], True, [0.01])]
    small, large = (0.001, 0.003, 0.01, 0.03), (0.1, 0.3, 1.0, 3.0)
    both = [(m, unlike, large if m is sgd else small) for m in (sgd, signsgd, signum) for unlike in (False, True)]
    return both + [(m, True, small) for m in noisy]


def median_and_mean() -> tuple[float, float]:
    """Where the vote and the mean lead to from 0.5, on the three quadratics of above."""
    c, x, y = np.array([[0.0], [0.0], [3.0]]), np.array([0.5]), np.array([0.5])
    for step in range(2000):
        lr = 0.01 / (1 + step / 200)
        x = x - lr * majority(x - c)
        y = y - lr * (y - c).mean(0)
    return x.item(), y.item()


def main(argv=None):
    args = arguments(__doc__, "sorted-labels", argv)
    x, y = median_and_mean()
    checks = [near("three quadratics: the vote leads to", 0.0, x, 0.005), near("    the mean leads to", 1.0, y, 0.005)]
    task = load(0.3 if args.fast else None)
    steps, batch = (150, 16) if args.fast else (300, 32)
    shards = {False: shuffled(task, WORKERS), True: sorted_by_label(task, WORKERS)}
    wanted, results = lines(args.fast), []
    with Progress(label=task.name, total=sum(len(grid) for *_, grid in wanted), unit="training") as progress:
        for method, unlike, grid in wanted:
            found = {}
            for lr in grid:
                found[lr] = train(task, method, lr, shards[unlike], batch, steps, args.seed)
                progress.update()
            best = max(found, key=found.get)
            results.append((method, unlike, best, found[best]))
            print(f"{described(method, unlike)}: {found[best]:.1f} % at lr {best:g}", flush=True)
    return finish(checks + compare(results), draw(results, task.name), args.out)


def described(method, unlike) -> str:
    return f"{method.name}, {'one class a worker' if unlike else 'shuffled'}"


def compare(results) -> list[Check]:
    """The order of things; how many points is what the training says."""

    def best(vote, unlike, noise=False):
        return max(a for m, u, _, a in results if (m.rule is not None, u, m.noise > 0) == (vote, unlike, noise))

    lost = best(False, True) - best(True, True)
    regained = best(True, True, noise=True) - best(True, True)
    shuffling = best(True, False) - best(True, True)
    return [
        at_least("one class a worker: points by which the mean is ahead of the vote", 10.0, lost),
        at_least("points that shuffling gives the vote", 10.0, shuffling),
        at_least("one class a worker: points that noise gives the vote", 5.0, regained),
    ]


def draw(results, name):
    figure, (axis,) = panels(1)
    figure.set_size_inches(7, 0.36 * len(results) + 1.2)
    labels = [described(method, unlike) for method, unlike, *_ in results]
    values = [a for *_, a in results]
    bars = axis.barh(labels, values, color=[VOTES if method.rule else FLOATS for method, *_ in results])
    axis.bar_label(bars, [f"{a:.1f} % (lr {lr:g})" for *_, lr, a in results], padding=3, fontsize=8)
    axis.axvline(10, color="#bbbbbb", lw=0.8, ls="--")
    axis.set(xlim=(0, 130), xticks=range(0, 101, 20), xlabel=f"test accuracy on {name}, % (dashed: chance)")
    axis.tick_params(labelsize=8)
    axis.invert_yaxis()
    return figure


if __name__ == "__main__":
    sys.exit(exit_status(main()))
