"""`python -m horovod_sign advise`: measures, predicts, advises; printed by the first rank.

mpirun -np 4 python -m horovod_sign advise --parameters 25.6e6
python -m horovod_sign advise --parameters 25.6e6 --gbits 1 10
"""

import argparse
import json
import os
import statistics
import sys
import time
from typing import Any

from horovod_sign.advise import measure, model, models, report
from horovod_sign.advise.layout import Layout, grown
from horovod_sign.doctor import facts
from horovod_sign.doctor.quiet import quietly
from horovod_sign.doctor.selftest import ByHorovod
from horovod_sign.launched import speaks, started_together
from horovod_sign.voting.choice import OP_SECONDS
from horovod_sign.voting.library import load_mpi

_RANKS = [2**k for k in range(1, 11)]
_ALONE = (
    "one rank has no link to measure: start it under mpirun on the hosts of the training, or say what links to reckon "
    "with: --gbits 1 10"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `advise`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--parameters", type=_count, metavar="N", help="how many parameters the model trains, as 25.6e6")
    what.add_argument(
        "--model", metavar="PACKAGE:FUNCTION", help="a function that returns the model, or (model, function of a loss)"
    )
    parser.add_argument("--step-ms", type=float, metavar="MS", help="what a step takes without communication")
    parser.add_argument("--gbits", type=float, nargs="+", default=[], metavar="G", help="links between hosts to assume")
    parser.add_argument("--latency-us", type=float, default=20.0, metavar="US", help="of those links; default: 20")
    parser.add_argument("--ranks-per-host", type=int, default=1, metavar="R", help="on those links; default: 1")
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print everything as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the advice; the exit status is 2 if there is nothing to go by."""
    try:
        parameters, step = (options.parameters, None) if options.model is None else models.inspect(options.model)
        comm = _comm()
        if comm is None and not options.gbits:
            raise ValueError(_ALONE)
    except (ImportError, AttributeError, ValueError) as error:
        if speaks():
            print(f"python -m horovod_sign advise: error: {error}", file=sys.stderr)
        return 2
    step = step if options.step_ms is None else 1e-3 * options.step_ms
    advice = advise(parameters, step, comm, options)
    if speaks():
        print(json.dumps(advice, indent=2) if options.json else "\n".join(report.lines(advice)), flush=True)
    return 0


def advise(parameters: int, step: float | None, comm: Any, options: argparse.Namespace) -> dict:
    """Measures and predicts. A collective of `comm`, if there is one."""
    predictions = []
    if comm is not None:
        speeds, where = measure.speeds(comm, _op_seconds(comm)), measure.layout(comm)
        named = f"Measured: {where.ranks} ranks on {where.hosts} hosts"
        predictions.append(_predictions(named, parameters, step, where, speeds, now=True))
    else:
        speeds = measure.Speeds(None, None, None, OP_SECONDS, *measure.kernels())
    for gbits in options.gbits:
        assumed, where = _assumed(speeds, gbits, 1e-6 * options.latency_us), Layout(1, options.ranks_per_host, 1)
        named = f"Assumed: links of {gbits:g} Gbit/s, {options.latency_us:g} us, {options.ranks_per_host} ranks a host"
        predictions.append(_predictions(named, parameters, step, where, assumed, now=False))
    return {"parameters": parameters, "step_s": step, "predictions": predictions}


def _predictions(named: str, n: int, step: float | None, where: Layout, speeds: measure.Speeds, now: bool) -> dict:
    at = {str(ranks): _all_methods(n, grown(where, ranks), speeds) for ranks in _RANKS}
    measured = _all_methods(n, where, speeds) if now else None
    shown = where if now else grown(where, 8)
    seconds = measured or at["8"]
    return {
        "where": named,
        "ranks": shown.ranks,
        "speeds": {k: v if not isinstance(v, dict) else {c: w._asdict() for c, w in v.items()} for k, v in
                   speeds._asdict().items()},
        "now": measured,
        "at": at,
        "sent_bytes": {method: model.sent_bytes(method, n, shown) for method in model.METHODS},
        "steps_an_hour": {method: _steps_an_hour(seconds[method], step) for method in model.METHODS},
    }  # fmt: skip


def _all_methods(n: int, where: Layout, speeds: measure.Speeds) -> dict[str, float | None]:
    return {method: model.predict(method, n, where, speeds) for method in model.METHODS}


def _steps_an_hour(seconds: float | None, step: float | None) -> str:
    """From: nothing overlaps; to: all does."""
    if seconds is None or step is None:
        return "-"
    return f"{3600 / (step + seconds):,.0f}-{3600 / max(step, seconds):,.0f}"


def _assumed(speeds: measure.Speeds, gbits: float, latency: float) -> measure.Speeds:
    """Links of a rate and a latency, instead of those that were measured."""
    ways = {name: measure.Way(latency, 8 / (1e9 * gbits)) for name in ("allreduce", "alltoall", "allgather")}
    return speeds._replace(between=ways, leaders=ways)


def _comm() -> Any:
    """All ranks, by mpi4py; None for one rank alone.

    Raises:
        ImportError: several were started, and mpi4py is not there.
    """
    launcher, number = started_together()
    if number == 1 and "PMIX_RANK" not in os.environ:
        return None
    if launcher == "HOROVOD_SIZE" and number > 1:
        raise ValueError("advise measures by MPI: start it by mpirun, not by horovodrun --gloo")
    with quietly():  # before mpi4py, which may be of another MPI
        facts.import_binding()
    try:
        comm = load_mpi().COMM_WORLD
    except ImportError:
        if number > 1:
            raise
        return None
    if comm.size == 1 and number > 1:
        raise ValueError(
            f"{launcher} says that {number} ranks were started, but each is alone: see python -m horovod_sign"
        )
    return comm if comm.size > 1 else None


def _op_seconds(comm: Any) -> float:
    """What the smallest op of Horovod takes, if all ranks have one; else what it took elsewhere."""
    hvd = facts.binding_over_mpi()
    if not all(comm.allgather(hvd is not None)):
        return OP_SECONDS
    ranks = ByHorovod(hvd)
    if not all(comm.allgather(ranks.size == comm.size)):
        return OP_SECONDS
    taken = []
    for _ in range(30):
        start = time.perf_counter()
        ranks.failed_ranks(True)  # an allgather of one byte
        taken.append(time.perf_counter() - start)
    return max(comm.allgather(statistics.median(taken[5:])))


def _count(text: str) -> int:
    count = int(float(text))
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return count
