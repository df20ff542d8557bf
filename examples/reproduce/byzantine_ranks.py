"""Real ranks, some of them hostile: a network trained by votes and by averaging (after Bernstein et al. 2019).

    ci/run 7 .venv/bin/python examples/reproduce/byzantine_ranks.py

7 ranks train a perceptron on Fashion-MNIST: by `hvs.DistributedOptimizer`, of which 0 to 4 ranks invert their
gradients (`hvs.adversaries`), and by Horovod's averaging, of which none or one sends -10 times its gradient. What
must come out: a minority of hostile ranks is outvoted, so that 0 to 3 learn; 4 of 7 are the majority, and the network
unlearns, to chance or below. The mean of six gradients and -10 of them is -4/7 of a gradient, which leads uphill: one
rank suffices.
"""

import sys

import horovod.torch as hvd
import torch
import torch.nn.functional as F
from reporting import FLOATS, VOTES, Check, Progress, arguments, at_least, at_most, exit_status, finish, panels
from training import load

import horovod_sign.torch as hvs

LR = {"vote": 0.003, "mean": 0.3}
CHANCE = 10.0


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(196, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))


def wrap(how: str, net):
    if how == "vote":
        return hvs.DistributedOptimizer(hvs.SignSGD(net.parameters(), LR[how]), net.named_parameters())
    return hvd.DistributedOptimizer(torch.optim.SGD(net.parameters(), LR[how]), net.named_parameters())


def corrupt(how: str, net, hostile: int):
    """The last ranks go wrong."""
    if hvd.rank() < hvd.size() - hostile:
        return
    if how == "vote":
        hvs.adversaries.corrupt(net.parameters(), "flipped")
    else:
        for p in net.parameters():
            p.register_hook(lambda g: -10 * g)


def train(task, how: str, hostile: int, steps: int, batch: int, seed: int) -> float:
    """Test accuracy in per cent; each rank takes it of its own network, and all are the same."""
    net = network(seed)
    optimizer = wrap(how, net)
    corrupt(how, net, hostile)
    hvd.broadcast_parameters(net.state_dict(), root_rank=0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(1000 * seed + hvd.rank())
    mine = [torch.from_numpy(a[hvd.rank() :: hvd.size()]) for a in (task.train_x, task.train_y)]
    for _ in range(steps):
        chosen = torch.randint(len(mine[0]), (batch,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(net(mine[0][chosen]), mine[1][chosen]).backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        right = net(torch.from_numpy(task.test_x)).argmax(1) == torch.from_numpy(task.test_y)
    return 100 * right.float().mean().item()


def compare(results, ranks: int, least: float) -> list[Check]:
    """Verdicts on results by (how, hostile); `least`: per cent that count as learnt."""
    checks = []
    for (how, hostile), accuracy in results.items():
        if how == "vote":
            what, outvoted = f"vote, {hostile} of {ranks} hostile", 2 * hostile < ranks
        else:
            what, outvoted = f"mean, {hostile or 'none'} sends -10 times its gradient", hostile == 0
        what += ": test accuracy, %"
        checks.append(at_least(what, least, accuracy) if outvoted else at_most(what, CHANCE + 5, accuracy))
    return checks


def main(argv=None):
    args = arguments(__doc__, "byzantine-ranks", argv)
    hvd.init()
    torch.set_num_threads(1)
    task = load(1.0 if args.fast else None)
    steps, batch = (40, 16) if args.fast else (500, 32)
    minority = (hvd.size() - 1) // 2
    cases = [("vote", h) for h in ([minority, minority + 1] if args.fast else range(minority + 2))]
    cases += [("mean", 1)] if args.fast else [("mean", 0), ("mean", 1)]
    results = {}
    for how, hostile in Progress(cases, f"{hvd.size()} ranks", unit="training", shown=hvd.rank() == 0):
        results[how, hostile] = train(task, how, hostile, steps, batch, args.seed)
    checks = compare(results, hvd.size(), 50.0 if args.fast else 70.0)
    if hvd.rank() == 0:
        finish(checks, draw(results, task.name, hvd.size()), args.out)
    return checks


def draw(results, name, ranks):
    figure, (axis,) = panels(1)
    figure.set_size_inches(6.4, 0.4 * len(results) + 1)
    labels = [
        f"vote, {h} of {ranks} hostile" if how == "vote" else f"mean, {h or 'none'} sends -10 g" for how, h in results
    ]
    bars = axis.barh(labels, list(results.values()), color=[VOTES if how == "vote" else FLOATS for how, _ in results])
    axis.bar_label(bars, fmt="%.1f %%", padding=3, fontsize=8)
    axis.axvline(CHANCE, color="#bbbbbb", lw=0.8, ls="--")
    axis.set(xlim=(0, 100), xlabel=f"test accuracy on {name}, %")
    axis.invert_yaxis()
    return figure


if __name__ == "__main__":
    sys.exit(exit_status(main()))
