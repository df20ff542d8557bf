"""ResNet-20's curves by epoch and by bytes: all optimizers, learning rates over a grid, three seeds, 1, 2 and 4 ranks.

    for ranks in 1 2 4; do mpirun -np $ranks python resnet20_curves.py --out FOLDER; done
    python resnet20_curves.py --out FOLDER --draw

The learning rate is tuned on one rank with the first seed; the others take it, since the batch is of all ranks
together. It is made for two cores: half of the channels, some images of 14 x 14, few epochs; all of it can be changed.
Finished trainings are lines of FOLDER/trainings.jsonl, and are not done again; one that was interrupted goes on after
its last epoch.
"""

import argparse
import importlib
import statistics
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from recording import about, append, find, markdown, origin, read

SIZE = ("images", "test_images", "width", "blocks", "epochs", "batch_size")
GRIDS = {
    "sgd": [0.03, 0.1, 0.3],
    "adam": [1e-3, 3e-3, 1e-2],
    "signsgd": [3e-4, 1e-3, 3e-3, 1e-2],
    "signum": [3e-4, 1e-3, 3e-3, 1e-2],
}
NAMES = {"sgd": "SGD with momentum", "adam": "Adam", "signsgd": "signSGD", "signum": "Signum"}
COLOURS = {"sgd": "#767676", "adam": "#a06a00", "signsgd": "#2a6f97", "signum": "#c2185b"}
RANKS = (1, 2, 4)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/resnet20"), help="folder; default: build/resnet20")
    parser.add_argument("--draw", action="store_true", help="draw what is there, and print the table")
    parser.add_argument("--framework", choices=("torch", "keras"), default="torch", help="default: torch, which tunes")
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


def finished(args, **wanted) -> list[dict]:
    """Trainings that are done, of this size, that have the `wanted` values."""
    wanted = {"framework": args.framework} | wanted | {name: getattr(args, name) for name in SIZE}
    return find(read(args.out / "trainings.jsonl", missing_ok=True), **wanted)


def best_lr(args, optimizer: str) -> float | None:
    """The learning rate of the grid with the best accuracy at the end, on one rank with the first seed."""
    tuning = finished(args, optimizer=optimizer, seed=0, ranks=1, framework="torch")
    ends = {line["lr"]: line["accuracy"][-1] for line in tuning}
    return max(ends, key=ends.get) if ends else None


def train_all(args):
    """On these ranks: the grid if there is only one, then the seeds at the best learning rate."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    if comm.size == 1 and args.framework == "torch":
        for optimizer in args.optimizers:
            for lr in GRIDS[optimizer]:
                _train(args, comm, optimizer, lr, 0)
    for seed in range(args.seeds):
        for optimizer in args.optimizers:
            lr = comm.bcast(best_lr(args, optimizer))
            if lr is None:
                raise SystemExit("the learning rates are tuned on one rank: mpirun -np 1 first")
            _train(args, comm, optimizer, lr, seed)


def _train(args, comm, optimizer, lr, seed):
    what = {"framework": args.framework, "optimizer": optimizer, "lr": lr, "seed": seed, "ranks": comm.size}
    if comm.bcast(bool(finished(args, **what))):
        return
    path = args.out / f"{args.framework}-{optimizer}-lr{lr:g}-seed{seed}-ranks{comm.size}.jsonl"
    checkpoint = path.with_suffix(".pt" if args.framework == "torch" else ".keras")
    if comm.rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
    steps = args.images // args.batch_size * args.epochs
    options = {"optimizer": optimizer, "lr": lr, "seed": seed}
    options |= {name.replace("_", "-"): getattr(args, name) for name in SIZE}
    options |= {"log": path, "checkpoint": checkpoint} | ({"data-dir": args.data_dir} if args.data_dir else {})
    argv = [f"--{name}={value}" for name, value in options.items()]
    # A tenth after half and after three quarters of the steps, as 32k and 48k of 64k.
    importlib.import_module(f"resnet20_{args.framework}").main(
        [*argv, "--no-cuda", "--milestones", str(steps // 2), str(3 * steps // 4)]
    )
    if comm.rank == 0:
        log = read(path)
        what |= {name: getattr(args, name) for name in SIZE} | {"data": log[0]["data"]}
        what |= {key: [line[key] for line in log] for key in ("loss", "accuracy", "bytes")}
        append(args.out / "trainings.jsonl", {**what, **about()})
        path.unlink()
        checkpoint.unlink(missing_ok=True)


def collect(args) -> dict[tuple[str, int], list[dict]]:
    """For each optimizer and number of ranks the trainings of all seeds that are done, at the best learning rate."""
    found = {}
    for optimizer in args.optimizers:
        for ranks in RANKS:
            of = finished(args, optimizer=optimizer, ranks=ranks, lr=best_lr(args, optimizer))
            if of:
                found[optimizer, ranks] = of
    return found


def table(args, found) -> str:
    """Accuracy at the end, mean and range of the seeds, and bytes that a rank sent."""
    head = ["optimizer", "learning rate, of those tried (accuracy)", *(f"{r} rank{'s' * (r > 1)}" for r in RANKS)]
    rows = [[*head, f"MB sent by each of {RANKS[-1]} ranks", "in Keras, 1 rank, first seed"]]
    for optimizer in args.optimizers:
        tried = {line["lr"]: line for line in finished(args, optimizer=optimizer, seed=0, ranks=1)}
        chosen = best_lr(args, optimizer)
        mark = {True: "**", False: ""}
        of_grid = [
            f"{mark[lr == chosen]}{lr:g}{mark[lr == chosen]} ({100 * tried[lr]['accuracy'][-1]:.1f})"
            for lr in sorted(tried)
        ]
        cells = []
        for ranks in RANKS:
            ends = [100 * line["accuracy"][-1] for line in found.get((optimizer, ranks), [])]
            spread = f"{min(ends):.1f} to {max(ends):.1f}" if len(ends) > 1 else "one seed"
            cells.append(f"{statistics.mean(ends):.1f} % ({spread})" if ends else "not run")
        most = found.get((optimizer, RANKS[-1]))
        cells.append(f"{most[0]['bytes'][-1] / 1e6:.2f}" if most else "not run")
        keras = finished(args, framework="keras", optimizer=optimizer, ranks=1, seed=0, lr=chosen)
        cells.append(f"{100 * keras[0]['accuracy'][-1]:.1f} %" if keras else "not run")
        rows.append([NAMES[optimizer], ", ".join(of_grid), *cells])
    return markdown(rows)


def draw(args, found):
    """Accuracy by epoch, one panel for each number of ranks, and by bytes on the most ranks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = [ranks for ranks in RANKS if any(r == ranks for _, r in found)]
    panels = len(counts) + (counts[-1] > 1)  # one rank sends nothing
    figure, axes = plt.subplots(
        1, panels, figsize=(3.6 * panels, 3.8), sharey=True, layout="constrained", squeeze=False
    )
    axes = axes[0]
    for (optimizer, ranks), lines in found.items():
        accuracy = 100 * np.array([line["accuracy"] for line in lines])
        style = {"color": COLOURS[optimizer], "label": NAMES[optimizer], "marker": "o", "ms": 3}
        curves = [(axes[counts.index(ranks)], np.arange(1, args.epochs + 1))]
        if ranks == counts[-1] and ranks > 1:
            curves.append((axes[-1], np.array(lines[0]["bytes"]) / 1e6))
        for axis, x in curves:
            axis.plot(x, accuracy.mean(0), **style)
            axis.fill_between(x, accuracy.min(0), accuracy.max(0), color=COLOURS[optimizer], alpha=0.15, lw=0)
    for axis, ranks in zip(axes, counts, strict=False):
        axis.set(xlabel="epoch", title=f"{ranks} rank{'s' if ranks > 1 else ''}")
    if counts[-1] > 1:
        axes[-1].set(xlabel="megabytes sent by each rank", xscale="log", title=f"{counts[-1]} ranks")
    axes[0].set_ylabel("test accuracy, %")
    axes[0].legend(loc="lower right", frameon=False, fontsize=8)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    picture = args.out / "resnet20.png"
    figure.savefig(picture, dpi=120)
    plt.close(figure)


TEXT = """# ResNet-20

Written by `python examples/reproduce/resnet20_curves.py --draw`; the figures are in trainings.jsonl beside this.
{data}, {test_images:,} to test; ResNet-20 with {width} channels in its first stage (the paper has 16), {epochs} epochs
of {steps} steps of {batch_size} images of all ranks together, the learning rate a tenth after half and after three
quarters of the steps; decay and momentum as in `resnet20.py`. Accuracy after the last epoch, mean (and range) of the
seeds; the learning rate (bold) is the best of a grid on one rank with the first seed.

![Accuracy by epoch and by bytes](resnet20.png)

{table}

{origin}.
"""


def report(args, found):
    """The page beside the picture."""
    lines = [  # all that the table is of
        line
        for framework in ("torch", "keras")
        for optimizer in args.optimizers
        for line in finished(args, framework=framework, optimizer=optimizer)
    ]
    where = {"data": lines[0]["data"], "origin": origin(lines), "steps": args.images // args.batch_size}
    text = TEXT.format(**vars(args) | where | {"table": table(args, found)})
    (args.out / "README.md").write_text(text)
    print(text)


def main(argv=None):
    args = parse_arguments(argv)
    if not args.draw:
        train_all(args)
        return
    found = collect(args)
    if not found:
        raise SystemExit(f"no finished trainings in {args.out}")
    draw(args, found)
    report(args, found)


if __name__ == "__main__":
    main()
