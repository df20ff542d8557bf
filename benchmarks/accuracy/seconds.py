"""Seconds by step of each method on real ranks: they hang on the network, and not on learning rate or seed."""

import math
import time
from pathlib import Path

import torch
from mpi4py import MPI
from progress import Progress
from recording import about, append

from benchmarks.accuracy import real
from benchmarks.accuracy.curves import GOAL, grid
from benchmarks.accuracy.task import Task
from benchmarks.measuring import record, timed

WARM = 4  # steps; PowerSGD compresses from the third on
LEAST, MOST, ABOUT = 2, 10, 0.4  # steps, and seconds, that are timed at once


def measure(out: Path, rate: str, methods: list[str], rounds: int, task: Task):
    """Times some steps of each method in each round, so that what disturbs the machine disturbs them all alike.

    A shaped link lets a megabyte through at once, so a step that is not timed comes before those that are.
    """
    torch.set_num_threads(1)
    with real.process_group():
        trainings = {method: real.Ranks(task, method, grid(method)[0]) for method in methods}
        counts = {method: _count(training) for method, training in trainings.items()}
        results: dict[str, list[dict]] = {method: [] for method in methods}
        for _ in Progress(range(rounds), f"steps at {rate}", unit="round", shown=MPI.COMM_WORLD.rank == 0):
            for method, training in trainings.items():
                results[method].append(_timed(training, counts[method]))
    if MPI.COMM_WORLD.rank == 0:
        when = about()
        for method, found in results.items():
            line = record({"kind": "seconds", "rate": rate, **task.what()}, method, found)
            append(out, {**line, **when})
            print(f"{rate:>8}  {method:16}{line['ms']:9.1f} ms a step  {line['bytes'] / 1e6:8.3f} MB sent", flush=True)


def _count(training: real.Ranks) -> int:
    """Warms up; how many steps are to be timed at once, the same on all ranks."""
    for _ in range(WARM):
        training.step()
    seconds = _timed(training, 1)["ms"] / 1e3
    return MPI.COMM_WORLD.bcast(min(MOST, max(LEAST, math.ceil(ABOUT / seconds))))


def _timed(training: real.Ranks, count: int) -> dict:
    def steps():
        for _ in range(count):
            training.step()

    training.step()
    return {what: of_all / count for what, of_all in timed(steps).items()}


def whole(out: Path, rate: str, rates: dict[str, float], seed: int, every: int, task: Task):
    """Whole trainings, one method after the other, each until it reaches the goal; time to evaluate does not count.

    Args:
        rates: the learning rate of each method.
    """
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    with real.process_group():
        for method, lr in rates.items():
            training, seconds, curve = real.Ranks(task, method, lr, seed), 0.0, []
            progress = Progress(label=f"{method} at {rate}", total=task.steps, shown=comm.rank == 0)
            while training.steps < task.steps and not (curve and curve[-1][2] >= GOAL):
                comm.Barrier()
                start = time.perf_counter()
                for _ in range(min(every, task.steps - training.steps)):
                    training.step()
                    progress.update()
                seconds += comm.allreduce(time.perf_counter() - start, MPI.MAX)
                accuracy = comm.bcast(task.accuracy(training.model) if comm.rank == 0 else None)
                curve.append([training.steps, round(seconds, 3), accuracy])
            progress.close()
            if comm.rank == 0:
                line = {"kind": "whole", "rate": rate, "method": method, "lr": lr, "seed": seed, "curve": curve}
                line |= {"steps": task.steps, "ranks": comm.size, **task.what()}
                append(out, {**line, **about()})
                print(f"{rate:>8}  {method:16} {100 * curve[-1][2]:.1f} % after {seconds:.1f} s", flush=True)
