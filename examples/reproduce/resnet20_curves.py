"""ResNet-20's curves by epoch and by bytes: all optimizers, learning rates over a grid, three seeds, 1, 2 and 4 ranks.

    for ranks in 1 2 4; do mpirun -np $ranks python resnet20_curves.py --out FOLDER; done
    python resnet20_curves.py --out FOLDER --draw

The learning rate is tuned on one rank with the first seed; the others take it, since the batch is of all ranks
together. It is made for two cores: half of the channels, some images of 14 x 14, few epochs; all of it can be changed.
What is done already is not done again, and an interrupted training goes on after its last epoch.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

GRIDS = {
    "sgd": [0.03, 0.1, 0.3],
    "adam": [1e-3, 3e-3, 1e-2],
    "signsgd": [3e-4, 1e-3, 3e-3],
    "signum": [3e-4, 1e-3, 3e-3],
}
NAMES = {"sgd": "SGD with momentum", "adam": "Adam", "signsgd": "signSGD", "signum": "Signum"}
COLOURS = {"sgd": "#767676", "adam": "#a06a00", "signsgd": "#2a6f97", "signum": "#c2185b"}
RANKS = (1, 2, 4)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/resnet20"), help="folder; default: build/resnet20")
    parser.add_argument("--draw", action="store_true", help="draw what is there, and print the table")
    parser.add_argument("--optimizers", nargs="+", choices=GRIDS, default=list(GRIDS), help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="default: 3")
    parser.add_argument("--images", type=int, default=4096, help="to train on; default: 4096")
    parser.add_argument("--test-images", type=int, default=2000, help="default: 2000")
    parser.add_argument("--width", type=int, default=8, help="channels of the first stage; default: 8")
    parser.add_argument("--blocks", type=int, default=3, help="of a stage; default: 3")
    parser.add_argument("--epochs", type=int, default=6, help="default: 6")
    parser.add_argument("--batch-size", type=int, default=128, help="of all ranks together; default: 128")
    parser.add_argument("--data-dir", help="folder of Fashion-MNIST")
    return parser.parse_args(argv)


def path_of(args, optimizer: str, lr: float, seed: int, ranks: int) -> Path:
    """The log of one training."""
    return args.out / f"{optimizer}-lr{lr:g}-seed{seed}-ranks{ranks}.jsonl"


def lines_of(path: Path) -> list[dict]:
    """A log; nothing if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def best_lr(args, optimizer: str) -> float | None:
    """The learning rate of the grid with the best accuracy at the end, on one rank with the first seed."""
    ends = {lr: lines_of(path_of(args, optimizer, lr, 0, 1)) for lr in GRIDS[optimizer]}
    ends = {lr: lines[-1]["accuracy"] for lr, lines in ends.items() if lines and lines[-1]["epoch"] == args.epochs}
    return max(ends, key=ends.get) if ends else None


def train_all(args):
    """On these ranks: the grid if there is only one, then the seeds at the best learning rate."""
    import horovod.torch as hvd

    hvd.init()
    if hvd.size() == 1:
        for optimizer in args.optimizers:
            for lr in GRIDS[optimizer]:
                _train(args, optimizer, lr, 0, 1)
    for seed in range(args.seeds):
        for optimizer in args.optimizers:
            lr = hvd.broadcast_object(best_lr(args, optimizer), name="rate")
            if lr is None:
                raise SystemExit("the learning rates are tuned on one rank: mpirun -np 1 first")
            _train(args, optimizer, lr, seed, hvd.size())


def _train(args, optimizer, lr, seed, ranks):
    import horovod.torch as hvd
    import resnet20_torch

    path = path_of(args, optimizer, lr, seed, ranks)
    lines = hvd.broadcast_object(lines_of(path), name="lines")
    if lines and lines[-1]["epoch"] >= args.epochs:
        return
    if hvd.rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
    steps = args.images // args.batch_size * args.epochs
    options = {"optimizer": optimizer, "lr": lr, "seed": seed, "epochs": args.epochs, "batch-size": args.batch_size}
    options |= {"images": args.images, "test-images": args.test_images, "width": args.width, "blocks": args.blocks}
    options |= {"log": path, "checkpoint": path.with_suffix(".pt")} | (
        {"data-dir": args.data_dir} if args.data_dir else {}
    )
    argv = [f"--{name}={value}" for name, value in options.items()]
    # A tenth after half and after three quarters of the steps, as 32k and 48k of 64k.
    resnet20_torch.main([*argv, "--no-cuda", "--milestones", str(steps // 2), str(3 * steps // 4)])
    if hvd.rank() == 0:
        path.with_suffix(".pt").unlink(missing_ok=True)


def collect(args) -> dict[tuple[str, int], list[list[dict]]]:
    """For each optimizer and number of ranks the logs of all seeds that are done."""
    found = {}
    for optimizer in args.optimizers:
        lr = best_lr(args, optimizer)
        for ranks in RANKS:
            logs = [lines_of(path_of(args, optimizer, lr, seed, ranks)) for seed in range(args.seeds)] if lr else []
            logs = [lines for lines in logs if lines and lines[-1]["epoch"] == args.epochs]
            if logs:
                found[optimizer, ranks] = logs
    return found


def table(args, found) -> str:
    """Accuracy at the end, mean and range of the seeds, and bytes that a rank sent."""
    head = ["optimizer", "learning rate, of those tried (accuracy)", *(f"{r} rank{'s' * (r > 1)}" for r in RANKS)]
    rows = [[*head, f"MB sent by each of {RANKS[-1]} ranks"]]
    for optimizer in args.optimizers:
        tried = {lr: lines_of(path_of(args, optimizer, lr, 0, 1)) for lr in GRIDS[optimizer]}
        chosen = best_lr(args, optimizer)
        mark = {True: "**", False: ""}
        of_grid = [
            f"{mark[lr == chosen]}{lr:g}{mark[lr == chosen]} ({100 * t[-1]['accuracy']:.1f})"
            for lr, t in tried.items()
            if t
        ]
        cells = []
        for ranks in RANKS:
            ends = [100 * lines[-1]["accuracy"] for lines in found.get((optimizer, ranks), [])]
            cells.append(f"{statistics.mean(ends):.1f} % ({min(ends):.1f} to {max(ends):.1f})" if ends else "")
        most = found.get((optimizer, RANKS[-1]))
        cells.append(f"{most[0][-1]['bytes'] / 1e6:.2f}" if most else "")
        rows.append([NAMES[optimizer], ", ".join(of_grid), *cells])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def draw(args, found):
    """Accuracy by epoch, one panel for each number of ranks, and by bytes on the most ranks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = [ranks for ranks in RANKS if any(r == ranks for _, r in found)]
    figure, axes = plt.subplots(
        1, len(counts) + 1, figsize=(3.6 * (len(counts) + 1), 3.8), sharey=True, layout="constrained"
    )
    for (optimizer, ranks), logs in found.items():
        accuracy = 100 * np.array([[line["accuracy"] for line in lines] for lines in logs])
        style = {"color": COLOURS[optimizer], "label": NAMES[optimizer], "marker": "o", "ms": 3}
        curves = [(axes[counts.index(ranks)], np.arange(1, args.epochs + 1))]
        if ranks == counts[-1] and ranks > 1:
            curves.append((axes[-1], np.array([line["bytes"] for line in logs[0]]) / 1e6))
        for axis, x in curves:
            axis.plot(x, accuracy.mean(0), **style)
            axis.fill_between(x, accuracy.min(0), accuracy.max(0), color=COLOURS[optimizer], alpha=0.15, lw=0)
    for axis, ranks in zip(axes, counts, strict=False):
        axis.set(xlabel="epoch", title=f"{ranks} rank{'s' if ranks > 1 else ''}")
    axes[-1].set(xlabel="megabytes sent by each rank", xscale="log", title=f"{counts[-1]} ranks")
    axes[0].set_ylabel("test accuracy, %")
    axes[0].legend(loc="lower right", frameon=False, fontsize=8)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    picture = args.out / "resnet20.png"
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    print(f"The picture: {picture.resolve()}")


def main(argv=None):
    args = parse_arguments(argv)
    if not args.draw:
        train_all(args)
        return
    found = collect(args)
    if not found:
        raise SystemExit(f"no finished trainings in {args.out}")
    print(table(args, found))
    draw(args, found)


if __name__ == "__main__":
    main()
