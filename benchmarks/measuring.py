"""What the benchmarks share: timing side by side on all ranks, bytes by the link's own counters, records."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from mpi4py import MPI
from progress import Progress
from recording import about, append

LINK = Path("/sys/class/net/eth0/statistics")


def link_bytes() -> int:
    """Bytes that this host's link has sent so far; 0 where hosts.sh did not make the host."""
    counter = LINK / "tx_bytes"
    return int(counter.read_text()) if counter.exists() else 0


def timed(run: Callable[[], None]) -> dict:
    """Milliseconds (of the slowest rank) and bytes sent (by the busiest link) of what all ranks begin together."""
    comm = MPI.COMM_WORLD
    comm.Barrier()
    sent, start = link_bytes(), time.perf_counter()
    run()
    milliseconds = 1e3 * (time.perf_counter() - start)
    comm.Barrier()
    worst = comm.allreduce(milliseconds, MPI.MAX), comm.allreduce(link_bytes() - sent, MPI.MAX)
    return {"ms": worst[0], "bytes": worst[1]}


def side_by_side(methods: dict[str, Callable[[], None]], rounds: int, warmup: int = 2) -> dict[str, list[dict]]:
    """Runs all methods once in each round, so that what disturbs the machine disturbs them all alike.

    Returns:
        for each method, for each round: what `timed` found.
    """
    results: dict[str, list[dict]] = {name: [] for name in methods}
    in_turn = range(-warmup, rounds)
    for i in Progress(in_turn, "side by side", unit="round", shown=MPI.COMM_WORLD.rank == 0):
        for name, run in methods.items():
            found = timed(run)
            if i >= 0:
                results[name].append(found)
    return results


def record(what: dict, method: str, rounds: list[dict]) -> dict:
    """A line of the results: medians, and the quartiles as spread."""
    times = sorted(r["ms"] for r in rounds)
    quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return {
        **what,
        "method": method,
        "ranks": MPI.COMM_WORLD.size,
        "ms": statistics.median(times),
        "ms_quartiles": [quartiles[0], quartiles[2]],
        "bytes": statistics.median(r["bytes"] for r in rounds),
        "rounds": len(times),
    }


def save(path: str | None, records: list[dict]):
    """Appends records to a file of JSON lines, each with date, commit and machine, on rank 0."""
    if path and MPI.COMM_WORLD.rank == 0:
        when = about()
        for each in records:
            append(Path(path), {**each, **when})


def show(title: str, records: list[dict], alone: float = 0.0):
    """Prints a table: of each method milliseconds, less those of a backward `alone`, spread, ratio, bytes."""
    base = next((r["ms"] - alone for r in records if r["method"] == "float32"), float("nan"))
    print(title)
    for r in records:
        ms, low, high = (each - alone for each in (r["ms"], *r["ms_quartiles"]))
        print(
            f"  {r['method']:20} {ms:9.2f} ms ({low:.2f} to {high:.2f})  {base / ms:6.1f} x less than float32"
            f"  {r['bytes'] / 1e6:9.3f} MB sent",
            flush=True,
        )
