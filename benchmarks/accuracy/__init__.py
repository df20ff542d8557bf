"""Time to accuracy: how long a training takes to a test accuracy of 85 %, by each way to share gradients.

python -m benchmarks accuracy curves                  accuracy by step, all workers in this process; tunes rates
mpirun -np 4 python -m benchmarks accuracy seconds    seconds by step, on these ranks (--rate says what links they have)
mpirun -np 4 python -m benchmarks accuracy whole      whole trainings until the goal, at the tuned learning rates
python -m benchmarks accuracy report                  both combined: tables, curves over seconds, where votes win

All in one folder (--out). sudo benchmarks/accuracy/run.sh does seconds, whole and report on four hosts that it makes.
"""

import argparse
from pathlib import Path

from benchmarks.accuracy.task import HIDDEN, WORKERS

OUT = Path(__file__).resolve().parents[2] / "build" / "accuracy"


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m benchmarks accuracy"
    )
    parser.add_argument("part", choices=PARTS, help="what to do")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder of results; default: {OUT}")
    parser.add_argument("--methods", nargs="+", help="some of them; default: all")
    parser.add_argument("--workers", type=int, default=WORKERS, help="of curves, as many as ranks; default: 4")
    parser.add_argument("--seeds", type=int, default=3, help="of curves; default: 3")
    parser.add_argument("--rate", default="shared memory", help="what the links are shaped to, for the record")
    parser.add_argument("--rounds", type=int, default=5, help="of which medians are taken; default: 5")
    parser.add_argument("--data-dir", help="folder with the four *-ubyte.gz files; default: as in the examples")
    parser.add_argument("--steps", type=int, help="of a training; default: one pass over all images")
    parser.add_argument("--hidden", type=int, default=HIDDEN, help=f"width of the hidden layers; default: {HIDDEN}")
    parser.add_argument("--every", type=int, default=13, help="steps between evaluations; default: 13")
    PARTS[(args := parser.parse_args(arguments)).part](args)


def _task(args, workers):
    from benchmarks.accuracy.task import Task

    return Task(args.data_dir, args.hidden, args.steps, workers=workers)


def _curves(args):
    from benchmarks.accuracy import curves, simulated

    task, methods = _task(args, args.workers), args.methods or list(simulated.METHODS)
    curves.measure(args.out / "curves.jsonl", methods, args.seeds, task, args.every)


def _seconds(args):
    import horovod.torch as hvd

    from benchmarks.accuracy import real, seconds

    hvd.init()
    task = _task(args, hvd.size())
    seconds.measure(args.out / "seconds.jsonl", args.rate, args.methods or list(real.METHODS), args.rounds, task)


def _whole(args):
    import horovod.torch as hvd
    from recording import find, read

    from benchmarks.accuracy import curves, real, seconds, simulated

    hvd.init()
    lines, task, rates = read(args.out / "curves.jsonl", missing_ok=True), _task(args, hvd.size()), {}
    for method in args.methods or real.METHODS:
        found = curves.runs(lines, simulated.CURVE_OF.get(method, method), task)
        if found := find(found, seed=0):
            rates[method] = curves.best(found)["lr"]
    if not rates:
        command = f"python -m benchmarks accuracy curves --workers {task.workers}"
        raise SystemExit(f"no learning rates of {task.workers} workers in {args.out}: run `{command}` first")
    seconds.whole(args.out / "whole.jsonl", args.rate, rates, 0, args.every, task)


def _report(args):
    from benchmarks.accuracy import report

    report.main(args.out, _task(args, args.workers))


PARTS = {"curves": _curves, "seconds": _seconds, "whole": _whole, "report": _report}
