"""All benchmarks that need ranks, one after the other in the same processes, on few coordinates: RESULTS_FILE"""

import gc
import json
import sys
import time
from pathlib import Path

from mpi4py import MPI

from benchmarks import accuracy, adapters, step, vote, walk

FEW = ["--coordinates", "1e4", "--rounds", "2"]


def time_to_accuracy(folder: Path):
    """Its four parts, on scikit-learn's digits."""
    import data  # where `benchmarks` finds it

    gc.freeze()  # frameworks live on
    digits = data._digits()
    data.load = lambda *_: digits
    few = ["--hidden", "32", "--steps", "50", "--every", "25", "--out", str(folder)]
    few += ["--workers", str(MPI.COMM_WORLD.size)]
    methods = ["--methods", "float16", "powersgd_1", "signum"]
    if MPI.COMM_WORLD.rank == 0:
        accuracy.main(["curves", *few, *methods, "--seeds", "2"])
    wait_asleep()
    accuracy.main(["seconds", *few, *methods, "--rounds", "1"])
    accuracy.main(["whole", *few, "--methods", "float16"])
    if MPI.COMM_WORLD.rank == 0:
        of_others(folder / "seconds.jsonl", "ranks", ms=1e6)
        of_others(folder / "curves.jsonl", "workers", lr=123, curve=[[1, 1.0], [50, 1.0]])
        accuracy.main(["report", *few])
    wait_asleep()


def wait_asleep():
    """For all ranks, without taking the processor from those that work."""
    there = MPI.COMM_WORLD.Ibarrier()
    while not there.Test():
        time.sleep(0.02)


def of_others(path: Path, count: str, **found):
    """The lines again, as one rank or worker more could have written them."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    others = [{**line, count: 1 + line[count], **found} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines + others))


if __name__ == "__main__":
    results = ["--json", sys.argv[1]]
    step.main([*FEW, *results, "--pause-ms", "20", "--methods", *step.METHODS])  # first: Horovod starts in it
    vote.main([*FEW, *results, "--abstain"])
    adapters.main([*FEW, "--momentum", "0.9"])
    walk.main([])
    time_to_accuracy(Path(sys.argv[1]).parent)
