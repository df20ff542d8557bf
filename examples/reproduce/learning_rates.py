"""Which learning rate to begin with, coming from SGD or Adam: sweeps on a small real task, over grids, three seeds.

A perceptron of 196-64-10 on Fashion-MNIST at 14 x 14, 300 steps, lr falling to 0 by a cosine; 4 workers with batches
of 32 unless a line says otherwise. Printed are, as test accuracy in per cent (mean of the seeds), all of the grid,
and for each line its best learning rate and the range that comes within one point of it.

There is no theory that says the numbers; signs do say that a step's length in each coordinate is the learning rate
itself. Of Adam that is nearly so too: its first step is lr sign(g) (Bernstein et al. 2018, Section 1), so its rates
carry over better than SGD's, whose steps are as long as the gradients.
"""

import sys

import numpy as np
from reporting import FLOATS, Check, Progress, arguments, at_least, exit_status, finish, panels, shades
from training import Method, load, shuffled, train

from horovod_sign import rules

LARGE = [0.03, 0.1, 0.3, 1.0, 3.0]  # of SGD
SMALL = [0.0003, 0.001, 0.003, 0.01, 0.03]  # of votes
SEEDS = (0, 1, 2)
NEAR = 1.0  # points


def signum(momentum: float, warmup: bool = False, **options) -> Method:
    name = f"Signum, momentum {momentum:g}{', warm-up' * warmup}"
    return Method(name, rules.signum(momentum, warmup), **options)


def lines(fast: bool):
    """(label, method, workers, batch, grid), in groups"""
    sgd, momentum, adam = Method("SGD"), Method("SGD, momentum 0.9", momentum=0.9), Method("Adam", adam=True)
    signsgd = Method("signSGD by vote", rules.signsgd())
    if fast:
        methods = [(m.name, m, 4, 16, [lr]) for m, lr in ((sgd, 0.3), (adam, 0.003), (signsgd, 0.003))]
        return {"methods": methods}
    methods = [(m.name, m, 4, 32, LARGE) for m in (sgd, momentum)]
    methods += [(adam.name, adam, 4, 32, [*SMALL, 0.1]), (signsgd.name, signsgd, 4, 32, SMALL)]
    methods += [(m.name, m, 4, 32, SMALL) for m in (signum(0.9), signum(0.9, True), signum(0.99), signum(0.99, True))]
    methods.append(("Lion, betas 0.9 and 0.99", Method("Lion", rules.lion(0.9, 0.99)), 4, 32, SMALL))
    methods.append(("signSGD, one bit", signsgd._replace(abstain=False), 4, 32, SMALL))
    batches = [(f"signSGD, 4 workers, batch {b}", signsgd, 4, b, SMALL) for b in (8, 128)]
    workers = [(f"signSGD, {w} workers, batch 32", signsgd, w, 32, SMALL) for w in (1, 16)]
    decays = [(f"Signum 0.9, decay {d:g}", signum(0.9, decay=d), 4, 32, SMALL) for d in (0.1, 1.0)]
    return {"methods": methods, "batch": batches, "workers": workers, "decay": decays}


def sweep(task, method, workers, batch, grid, steps, seeds, progress) -> list[float]:
    """The mean accuracy by learning rate."""
    shards, found = shuffled(task, workers), []
    for lr in grid:
        with np.errstate(all="ignore"):  # the largest rates may diverge: that is a result
            found.append(float(np.mean([train(task, method, lr, shards, batch, steps, seed) for seed in seeds])))
        progress.update()
    return found


def near_best(grid, accuracies) -> tuple[float, list[float]]:
    """The best rate, and the least and the largest that come near it."""
    best = max(accuracies)
    close = [lr for lr, a in zip(grid, accuracies, strict=True) if a >= best - NEAR]
    return grid[int(np.argmax(accuracies))], [close[0], close[-1]]


def table(group, results) -> str:
    """In Markdown."""
    rows = [f"| {group} | accuracy by learning rate, % | best | within a point |", "|---|---|---|---|"]
    for label, grid, accuracies in results:
        best, (low, high) = near_best(grid, accuracies)
        cells = ", ".join(f"{lr:g}: {a:.1f}" for lr, a in zip(grid, accuracies, strict=True))
        rows.append(f"| {label} | {cells} | {best:g} | {low:g} to {high:g} |")
    return "\n".join(rows)


def main(argv=None):
    args = arguments(__doc__, "learning-rates", argv)
    task, groups = load(1.0 if args.fast else None), lines(args.fast)
    steps, seeds = (100, SEEDS[:1]) if args.fast else (300, SEEDS)
    total = sum(len(grid) for group in groups.values() for *_, grid in group)
    results = {}
    with Progress(label=task.name, total=total, unit="rate") as progress:
        for group, wanted in groups.items():
            results[group] = [
                (label, grid, sweep(task, method, workers, batch, grid, steps, seeds, progress))
                for label, method, workers, batch, grid in wanted
            ]
            print(table(group, results[group]) + "\n", flush=True)
    return finish(compare(results["methods"]), draw(results["methods"], task.name), args.out)


def compare(methods) -> list[Check]:
    """Nothing is derived here; but each method must have learnt, and as well as SGD within two points."""
    best = {label: max(accuracies) for label, _, accuracies in methods}
    reference = best["SGD"]
    return [at_least(f"{label}: test accuracy at its best rate, %", reference - 2, a) for label, a in best.items()]


def draw(methods, name):
    figure, (axis,) = panels(1)
    figure.set_size_inches(8.6, 4)
    votes = [label for label, *_ in methods if label.startswith(("Sig", "sig", "Lion"))]
    colour = shades(votes)
    for label, grid, accuracies in methods:
        theirs = label not in votes
        style = {"SGD": ":", "Adam": "--"}.get(label, "-")
        axis.plot(grid, accuracies, "o" + style, ms=3, lw=1, color=FLOATS if theirs else colour[label], label=label)
    axis.set(xscale="log", xlabel="learning rate", ylabel=f"test accuracy on {name}, %")
    axis.set_ylim(bottom=max(axis.get_ylim()[0], 60))
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


if __name__ == "__main__":
    sys.exit(exit_status(main()))
