"""Accuracy by step and seconds by step combined: tables, accuracy over seconds, and where votes win and lose."""

import math
import statistics
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from recording import find, markdown, origin, read

from benchmarks.accuracy import curves
from benchmarks.accuracy.curves import GOAL
from benchmarks.accuracy.simulated import CURVE_OF, POWERSGD_FROM
from benchmarks.accuracy.task import EARLIER, Task
from benchmarks.tables import LINKS

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

BASE = "float16"
NAMES = {
    "float32": "Horovod, float32",
    "float16": "Horovod, float16",
    "ddp_float16": "DDP, float16",
    "powersgd_1": "DDP, PowerSGD rank 1",
    "powersgd_4": "DDP, PowerSGD rank 4",
    "signsgd": "SignSGD",
    "signum": "Signum",
    "signsgd_one_bit": "SignSGD, one bit",
    "signum_one_bit": "Signum, one bit",
}
COLOURS = {
    "float32": "#767676",
    "float16": "#222222",
    "ddp_float16": "#a06a00",
    "powersgd_1": "#7aa974",
    "powersgd_4": "#2e7d32",
    "signsgd": "#90b8e0",
    "signum": "#c2185b",
    "signsgd_one_bit": "#2a6f97",
    "signum_one_bit": "#e58bb0",
}


class Method(NamedTuple):
    """One method's runs at its best learning rate, and its steps on each kind of link.

    Attributes:
        lr: the best that was tried.
        tuning: a line for each learning rate that was tried with seed 0, in ascending order.
        runs: a line for each seed at the best.
        steps: a line of seconds.jsonl for each rate, the latest.
    """

    lr: float
    tuning: list[dict]
    runs: list[dict]
    steps: dict[str, dict]

    def seconds(self, step: float, rate: str, first_ms: float) -> float:
        """What the first `step` steps take; the first ones of PowerSGD take `first_ms` each."""
        first = min(step, POWERSGD_FROM) if self.runs[0]["method"].startswith("powersgd") else 0
        return 1e-3 * (first * first_ms + (step - first) * self.steps[rate]["ms"])


def collect(out: Path, task: Task) -> dict[str, Method]:
    """All methods of which there is both, by as many workers as ranks."""
    lines, timed = read(out / "curves.jsonl", missing_ok=True), on_ranks(out / "seconds.jsonl", task)
    found = {}
    for name in NAMES:
        runs = curves.runs(lines, CURVE_OF.get(name, name), task)
        tuning = sorted(find(runs, seed=0), key=lambda line: line["lr"])
        of_method = {line["rate"]: line for line in find(timed, method=name)}
        if tuning and of_method:
            lr = curves.best(tuning)["lr"]
            found[name] = Method(lr, tuning, find(runs, lr=lr), of_method)
    return found


def on_ranks(path: Path, task: Task, **wanted) -> list[dict]:
    """Lines that so many ranks have written about this task."""
    lines = [{**EARLIER, **line} for line in read(path, missing_ok=True)]
    return find(lines, ranks=task.workers, **task.what(), **wanted)


def to_goal(methods: dict[str, Method], name: str, rate: str) -> list[float]:
    """Seconds that each seed takes to the goal, infinite if it does not get there, in ascending order."""
    method, first = methods[name], _first_ms(methods, rate)
    reached = [curves.steps_to_goal(run["curve"]) for run in method.runs]
    return sorted(method.seconds(step, rate, first) if step else float("inf") for step in reached)


def _first_ms(methods, rate):
    of = methods["float32"] if "float32" in methods else next(iter(methods.values()))
    return of.steps[rate]["ms"]


def rates_of(methods: dict[str, Method]) -> list[str]:
    """Those at which every method was timed, slowest first."""
    return [rate for rate in LINKS if all(rate in method.steps for method in methods.values())]


def curve_table(methods: dict[str, Method]) -> str:
    """Of each method its learning rate, steps to the goal, and accuracy at the end."""
    rows = [["method", "learning rate, of those tried", f"steps to {GOAL:.0%}", "accuracy at the end, all test images"]]
    for name, method in methods.items():
        reached = [curves.steps_to_goal(run["curve"]) for run in method.runs]
        final = [100 * run["final"] for run in method.runs]
        rates = [line["lr"] for line in method.tuning]
        tried = ", ".join(f"**{lr:g}**" if lr == method.lr else f"{lr:g}" for lr in rates)
        steps = ", ".join(f"{each:.0f}" if each else "not reached" for each in reached)
        rows.append([NAMES[name], tried, steps, _mean(final)])
    return markdown(rows)


def _mean(final: list[float]) -> str:
    spread = f"{min(final):.2f} to {max(final):.2f}" if len(final) > 1 else "one seed"
    return f"{statistics.mean(final):.2f} % ({spread})"


def time_table(methods: dict[str, Method]) -> str:
    """Of each method and rate: milliseconds of a step, seconds to the goal, and how many times as fast as float16."""
    rates = rates_of(methods)
    sent = next((rate for rate in rates if methods[next(iter(methods))].steps[rate]["bytes"]), None)
    rows = [
        [
            "method",
            "MB sent by a host in a step",
            *(f"{LINKS[rate]}: ms a step; seconds to {GOAL:.0%}" for rate in rates),
        ]
    ]
    for name, method in methods.items():
        cells = [f"{method.steps[sent]['bytes'] / 1e6:.2f}" if sent else ""]
        for rate in rates:
            seconds = to_goal(methods, name, rate)
            cells.append(f"{method.steps[rate]['ms']:,.0f}; {_spread(seconds)}")
        rows.append([NAMES[name], *cells])
    return markdown(rows)


def _spread(seconds: list[float]) -> str:
    """Median and range."""
    middle, first, last = statistics.median(seconds), seconds[0], seconds[-1]
    if math.isinf(middle):
        return "not reached"
    if len(seconds) == 1:
        return f"{middle:.1f} (one seed)"
    return f"{middle:.1f} ({first:.1f} to {'not reached' if math.isinf(last) else f'{last:.1f}'})"


def whole_table(trainings: list[dict], methods: dict[str, Method]) -> str:
    """Whole trainings beside what was combined."""
    rows = [["method", "link", f"whole training, seconds to {GOAL:.0%}", "combined, the same seed", "ratio"]]
    for line in trainings:
        name, rate = line["method"], line["rate"]
        if name not in methods or rate not in methods[name].steps or line["curve"][-1][2] < GOAL:
            continue
        # Both at the first evaluation that reached it: the training ended there.
        step, seconds, _ = line["curve"][-1]
        run = find(methods[name].runs, seed=line["seed"])[0]
        then = next((s for s, accuracy in run["curve"] if accuracy >= GOAL), None)
        expected = methods[name].seconds(then, rate, _first_ms(methods, rate)) if then else float("nan")
        cells = [f"{seconds:.1f} ({step} steps)", f"{expected:.1f} ({then} steps)", f"{seconds / expected:.2f}"]
        rows.append([NAMES[name], LINKS.get(rate, rate), *cells])
    return markdown(rows) if len(rows) > 1 else ""


def draw_curves(methods: dict[str, Method], path: Path):
    """Accuracy over seconds, the mean of the seeds, one panel for each kind of link."""
    rates = rates_of(methods)
    figure, axes = plt.subplots(
        1, len(rates), figsize=(4 * len(rates), 4.2), sharey=True, layout="constrained", squeeze=False
    )
    for axis, rate in zip(axes[0], rates, strict=True):
        for name, method in methods.items():
            steps = [step for step, _ in method.runs[0]["curve"]]
            accuracy = 100 * np.mean([[a for _, a in run["curve"]] for run in method.runs], axis=0)
            seconds = [method.seconds(step, rate, _first_ms(methods, rate)) for step in steps]
            style = "--" if name in CURVE_OF else "-"
            axis.plot(seconds, accuracy, style, color=COLOURS[name], lw=1.8, label=NAMES[name])
        axis.axhline(100 * GOAL, color="#bbbbbb", lw=0.8, ls=":", zorder=0)
        axis.set(xscale="log", xlabel="seconds of training", title=LINKS[rate], ylim=(60, 89))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("test accuracy, %")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5 if len(rates) > 2 else 3,
        frameon=False,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_map(methods: dict[str, Method], path: Path):
    """Methods by rates: how many times as fast as float16 to the goal."""
    rates = rates_of(methods)
    seconds = np.array([[statistics.median(to_goal(methods, name, rate)) for rate in rates] for name in methods])
    base = seconds[list(methods).index(BASE)]
    faster = np.where(np.isfinite(seconds), np.log2(base / np.where(np.isfinite(seconds), seconds, 1)), -np.inf)
    figure, axis = plt.subplots(figsize=(2.2 + 1.7 * len(rates), 0.55 * len(methods) + 1.6), layout="constrained")
    axis.imshow(np.clip(faster, -3, 3), cmap="RdBu", vmin=-3.5, vmax=3.5, aspect="auto")
    for row in range(len(methods)):
        for column in range(len(rates)):
            took, strong = seconds[row, column], abs(faster[row, column]) > 2
            text = f"{base[column] / took:.2g} x   {took:.3g} s" if np.isfinite(took) else "not reached"
            axis.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if strong else "black")
    axis.set_xticks(range(len(rates)), [LINKS[rate] for rate in rates])
    axis.set_yticks(range(len(methods)), [NAMES[name] for name in methods])
    title = f"To {GOAL:.0%} test accuracy: times as fast\nas Horovod's float16, and seconds"
    axis.set_title(title, fontsize=10, loc="left")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def verdict(methods: dict[str, Method]) -> str:
    """For each kind of link: whether votes win against float16 and against all others, and why."""
    lines = []
    votes = [name for name in methods if curves.votes(name)]
    for rate in rates_of(methods):
        took = {name: statistics.median(to_goal(methods, name, rate)) for name in methods}
        vote = min(votes, key=took.get, default=BASE)
        other = min(set(methods) - set(votes), key=took.get)
        wins = "win" if took[vote] < took[BASE] else "lose"
        ms = [f"{methods[name].steps[rate]['ms']:,.0f}" for name in (vote, BASE)]
        steps = [_median_steps(methods[name]) for name in (vote, BASE)]
        reason = f"a step takes {ms[0]} ms instead of {ms[1]}, and the goal {steps[0]} steps instead of {steps[1]}"
        ratio = took[BASE] / took[vote]
        best = f"the fastest of the others is {NAMES[other]}, {_seconds(took[other])} against {_seconds(took[vote])}"
        result = f"votes {wins} against float16, {ratio:.2g} times as fast ({NAMES[vote]})"
        lines.append(f"- **{LINKS[rate]}**: {result}: {reason}; {best}.")
    return "\n".join(lines)


def _median_steps(method: Method) -> str:
    reached = [curves.steps_to_goal(run["curve"]) or float("inf") for run in method.runs]
    return f"{statistics.median(reached):.0f}"


def _seconds(took: float) -> str:
    return f"{took:.3g} s" if math.isfinite(took) else "not reached"


def origins(trainings: list[dict], methods: dict[str, Method]) -> str:
    """When, where and by which code the lines that were used were measured."""
    used = {
        "Accuracy by step": [run for method in methods.values() for run in method.runs + method.tuning],
        "Seconds by step": [line for method in methods.values() for line in method.steps.values()],
        "Whole trainings": trainings,
    }
    lines = []
    for what, of in used.items():
        if of:
            rounds = {line["rounds"] for line in of if "rounds" in line}
            many = f", medians of {' or '.join(map(str, sorted(rounds)))} rounds" if rounds else ""
            busy = what != "Accuracy by step" and max(line["load"] for line in of) > QUIET
            lines.append(f"- {what}{many}: {origin(of)}{BUSY if busy else ''}")
    return "\n".join(lines)


QUIET = 8  # load average; four ranks make 4 to 7 of it by themselves, with nothing beside them
BUSY = ": **a busy machine, whose seconds are too many**"
TEXT = """# Time to accuracy

Written by `python -m benchmarks accuracy report`; the figures are in the files beside it. A network of {parameters:,}
parameters (two hidden layers of {hidden:,}) learns {data} in {passes}, {steps} steps of {workers} times {batch}
images, the learning rate falling linearly to 0; goal: {goal:.0%} of the first {tested:,} test images. {where}.
Compare with float16 first: it is what people run.

{verdict}

![Where votes win](where-votes-win.png)

![Accuracy over seconds](time-to-accuracy.png)

Seconds are steps to the goal (median and range of the seeds) times milliseconds of a step (median); the first two steps
of PowerSGD are float32. Bytes by the link's own counters.

{times}

The best learning rate of each grid (bold) reaches the goal in the fewest steps with seed 0:

{curves}

{whole}

{origin}
"""


def _where(task: Task, methods: dict[str, Method]) -> str:
    if rates_of(methods) == ["shared memory"]:
        return f"{task.workers} processes of one machine"
    return f"{task.workers} hosts that share the cores of one machine, each link shaped to a rate"


def main(out: Path, task: Task):
    methods = collect(out, task)
    if BASE not in methods:
        raise SystemExit(
            f"{out} lacks curves of {task.workers} workers, or seconds of as many ranks, of {BASE} on {task.name}: "
            "run `curves` and `seconds` first"
        )
    draw_curves(methods, out / "time-to-accuracy.png")
    draw_map(methods, out / "where-votes-win.png")
    trainings = on_ranks(out / "whole.jsonl", task, steps=task.steps)
    whole = whole_table(trainings, methods)
    parts = {"verdict": verdict(methods), "times": time_table(methods), "curves": curve_table(methods)}
    parts |= {
        "whole": whole and f"Whole trainings, beside what was combined:\n\n{whole}",
        "origin": origins(trainings, methods),
        "where": _where(task, methods),
    }
    parts |= {**task.what(), "workers": task.workers, "steps": task.steps, "passes": task.passes()}
    text = TEXT.format(goal=GOAL, tested=task.tested, **parts)
    (out / "README.md").write_text(text)
    print(text, out / "README.md", sep="\n")
