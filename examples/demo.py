"""Says what the two trainings of ci/demo.sh have shown: a table, a sentence and a picture.

python examples/demo.py FOLDER --links 100        recorded on hosts with links of 100 Mbit/s
python examples/demo.py FOLDER                    over shared memory: times on links are then predicted
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import matplotlib
from recording import read

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GOAL = 0.88
NAMES = {"sgd": "Horovod, float32 SGD with momentum", "signum": "Signum by majority vote"}
COLORS = {"sgd": "#767676", "signum": "#c2185b"}
MESSAGE = 50e-6  # seconds that a message takes on an ordinary network, besides its bytes


class Training(NamedTuple):
    """One of the two.

    Attributes:
        optimizer: "sgd" or "signum".
        lines: as `recording.Record` wrote them.
    """

    optimizer: str
    lines: list[dict]

    @property
    def last(self) -> dict:
        return self.lines[-1]

    @property
    def bytes_per_step(self) -> float:
        return self.last["bytes"] / self.last["step"]

    @property
    def seconds_per_step(self) -> float:
        return self.last["seconds"] / self.last["step"]

    def until_goal(self) -> dict | None:
        """The first evaluation that reached the goal."""
        return next((line for line in self.lines if line["accuracy"] >= GOAL), None)

    def on_links(self, gigabits: float) -> float:
        """Seconds of a step, predicted: as over shared memory, then bytes and messages one after the other."""
        messages = 2 * (self.last["ranks"] - 1)
        return self.seconds_per_step + messages * MESSAGE + 8 * self.bytes_per_step / (gigabits * 1e9)


def table(trainings: list[Training]) -> str:
    rows = [["", "test accuracy", "bytes per step and rank", "ms per step", f"seconds to {GOAL:.0%}"]]
    for each in trainings:
        goal = each.until_goal()
        rows.append(
            [
                NAMES[each.optimizer],
                f"{100 * each.last['accuracy']:.2f} %",
                f"{each.bytes_per_step:,.0f}",
                f"{1e3 * each.seconds_per_step:.0f}",
                f"{goal['seconds']:.0f}" if goal else "not reached",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(lines)


def predictions(trainings: list[Training]) -> str:
    lines = ["predicted for hosts with such links, by bytes and messages (not measured):"]
    for gigabits in (0.1, 1, 10):
        sgd, signum = (each.on_links(gigabits) * each.last["step"] for each in trainings)
        lines.append(
            f"  {gigabits:>4} Gbit/s: float32 {sgd:5.0f} s, votes {signum:5.0f} s: {sgd / signum:.1f} times as fast"
        )
    return "\n".join(lines)


def sentence(trainings: list[Training], links: float | None) -> str:
    sgd, signum = trainings
    less = sgd.bytes_per_step / signum.bytes_per_step
    where = f"On {sgd.last['ranks']} hosts with links of {links:g} Mbit/s" if links else "Over shared memory"
    goals = [each.until_goal() for each in trainings]
    points = 100 * (signum.last["accuracy"] - sgd.last["accuracy"])
    quality = f"{points:+.1f} points of accuracy after the same {sgd.last['step']} steps"
    if not all(goals):
        ratio = sgd.seconds_per_step / signum.seconds_per_step
        speed = f"each step was {ratio:.1f} times as fast"
    else:
        ratio = goals[0]["seconds"] / goals[1]["seconds"]
        speed = f"{GOAL:.0%} was reached {ratio:.1f} times as fast"
    text = f"{where} votes sent {less:.0f} times fewer bytes and {speed}, with {quality}."
    if ratio < 1.1:
        text += (
            " Here the network is no bottleneck, and votes bring no speed: they are for slower links, or larger models."
        )
    return text


def draw(trainings: list[Training], path: Path, links: float | None):
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    for each in trainings:
        accuracy = [100 * line["accuracy"] for line in each.lines]
        for axis, of in zip(axes, ("seconds", "bytes"), strict=True):
            x = [line[of] / (1 if of == "seconds" else 1e6) for line in each.lines]
            axis.plot(x, accuracy, "o-", ms=3, color=COLORS[each.optimizer], label=NAMES[each.optimizer])
    for axis in axes:
        axis.axhline(100 * GOAL, color="#bbbbbb", lw=0.8, ls="--", zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(bottom=70)
    where = f"{trainings[0].last['ranks']} hosts, links of {links:g} Mbit/s" if links else "shared memory"
    axes[0].set(xlabel=f"seconds of training ({where})", ylabel=f"test accuracy on {trainings[0].last['data']}, %")
    axes[1].set(xlabel="megabytes sent by each rank", xscale="log")
    axes[0].legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__ and __doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with sgd.jsonl and signum.jsonl, for the picture too")
    parser.add_argument("--links", type=float, help="Mbit/s of the hosts' links; default: shared memory")
    args = parser.parse_args()
    trainings = [Training(name, read(args.folder / f"{name}.jsonl")) for name in NAMES]
    picture = args.folder / "demo.png"
    draw(trainings, picture, args.links)
    print("\n" + table(trainings) + "\n")
    if not args.links:
        print(predictions(trainings) + "\n")
    print(sentence(trainings, args.links))
    print(f"The picture: {picture.resolve()}")


if __name__ == "__main__":
    main()
