"""Accuracy by step of each method: its learning rate tuned over a grid with one seed, then further seeds."""

import time
from pathlib import Path

import torch
from progress import Progress
from recording import about, append, find, read

from benchmarks.accuracy import simulated
from benchmarks.accuracy.task import EARLIER, Task
from benchmarks.results import GOAL, steps_to_goal

FACTOR = 3  # from one learning rate of a grid to the next


def votes(method: str) -> bool:
    """Whether it is one of the package's."""
    return method.startswith("sign")


def grid(method: str) -> list[float]:
    """Three learning rates, a factor of about 3 apart."""
    return [1e-4, 3e-4, 1e-3] if votes(method) else [0.03, 0.1, 0.3]


def beyond(rates: list[float], best: float) -> float | None:
    """The next learning rate, where the best of those tried is at an end."""
    low, high = min(rates), max(rates)
    wanted = low / (10 / FACTOR if _leading(low) == 1 else FACTOR) if best == low else None
    if best == high:
        wanted = high * (FACTOR if _leading(high) == 1 else 10 / FACTOR)
    return float(f"{wanted:.1g}") if wanted else None


def _leading(x: float) -> int:
    return int(f"{x:e}"[0])


def rank(line: dict):
    """What makes a run better than another: the goal in fewer steps, or else a higher accuracy at the end."""
    steps = steps_to_goal(line["curve"])
    return (steps is None, steps or 0.0, -line["final"])


def best(lines: list[dict]) -> dict:
    """The best of the runs of a grid."""
    return min(lines, key=rank)


def measure(out: Path, methods: list[str], seeds: int, task: Task, every: int):
    """Runs what is not in the file yet."""
    torch.set_num_threads(1)
    for method in methods:
        rates = grid(method)
        for lr in rates:
            _once(out, task, method, lr, 0, every)
        while (further := beyond(rates, (chosen := _chosen(out, task, method))["lr"])) and len(rates) < 6:
            rates.append(further)
            _once(out, task, method, further, 0, every)
        for seed in range(1, seeds):
            _once(out, task, method, chosen["lr"], seed, every)


def runs(lines: list[dict], method: str, task: Task) -> list[dict]:
    """The lines of one method on one task, by as many workers."""
    lines = [{**EARLIER, **line} for line in lines]
    return find(lines, kind="curve", method=method, steps=task.steps, workers=task.workers, **task.what())


def _chosen(out, task, method):
    return best(find(runs(read(out, missing_ok=True), method, task), seed=0))


def _once(out: Path, task: Task, method: str, lr: float, seed: int, every: int):
    if find(runs(read(out, missing_ok=True), method, task), lr=lr, seed=seed):
        return
    start = time.process_time()
    with Progress(label=f"{method}, rate {lr:g}, seed {seed}", total=task.steps) as progress:
        model, curve = simulated.train(task, method, lr, seed, every, progress.update)
    run = {"kind": "curve", "method": method, "lr": lr, "seed": seed, "steps": task.steps, "workers": task.workers}
    run |= {**task.what(), "final": task.accuracy(model, all_images=True), "curve": curve}
    append(out, {**run, "processor_seconds": round(time.process_time() - start, 1), **about()})
    reached = steps_to_goal(curve)
    print(
        f"{method:16} rate {lr:<7g} seed {seed}  {100 * run['final']:.2f} % at the end, "
        f"{GOAL:.0%} {'not reached' if reached is None else f'after {reached:.0f} steps'}",
        flush=True,
    )
