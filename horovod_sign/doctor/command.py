"""`python -m horovod_sign`: facts, a vote of all ranks, and what is wrong, told once.

python -m horovod_sign
mpirun -np 4 python -m horovod_sign --json
"""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

from horovod_sign.doctor import facts as facts_of
from horovod_sign.doctor import selftest
from horovod_sign.doctor.findings import ERROR, WARNING, Finding, crashing, examine, examine_ranks, in_order
from horovod_sign.doctor.report import diagnosis, inventory
from horovod_sign.launched import speaks
from horovod_sign.voting.library import load_mpi

TIME_LIMIT = 60  # seconds for all ranks to answer
_ALIKE = ("horovod_sign", "python", "torch", "tensorflow", "keras", "horovod", "mpi")


def run(as_json: bool = False) -> int:
    """Prints the report on the first rank; the exit status is 1 on all if a training could not work."""
    facts = facts_of.collect()
    findings, speaking = examine(facts), speaks()
    if speaking and not as_json:  # before ranks are asked, which may not answer
        print(inventory(facts), flush=True)
    ranks, why = _ranks(facts)
    outcome = None
    if ranks is not None:
        with _given_up_after(TIME_LIMIT, findings):
            outcome, findings = _ask(ranks, facts, findings)
    failed = any(each.level == ERROR for each in findings)
    if speaking and as_json:
        told = [each._asdict() for each in findings]
        test = (
            None if outcome is None or ranks is None else {**outcome._asdict(), "ranks": ranks.size, "over": ranks.name}
        )
        print(json.dumps({**facts, "self_test": test, "findings": told, "ok": not failed}, indent=2), flush=True)
    elif speaking:
        lines = [_verdict(ranks, outcome)] if outcome is not None else [why] if why else []
        print(*lines, diagnosis(findings), sep="\n", flush=True)
    return int(failed)


def _ranks(facts: dict) -> tuple[selftest.ByMPI | selftest.ByHorovod | None, str]:
    """What all ranks vote by, if a launcher started them; or why they cannot."""
    launch, hvd = facts["launch"], facts_of.binding()
    if launch["by"] is None:
        return None, ""
    if crashing(facts):
        return None, f"No self-test of the {launch['started']} ranks, which would crash"
    if launch["by"] != "HOROVOD_SIZE" and facts["mpi"]["why_not"] is None:
        return selftest.ByMPI(load_mpi().COMM_WORLD), ""
    why = "by horovodrun --gloo"
    if launch["by"] != "HOROVOD_SIZE":
        why = f"without mpi4py ({facts['mpi']['why_not']})"
    if hvd is None:
        return None, f"No self-test of the {launch['started']} ranks, started {why}: there is no Horovod to vote by"
    return selftest.ByHorovod(hvd), ""


def _ask(ranks: Any, facts: dict, findings: list[Finding]) -> tuple[selftest.Outcome, list[Finding]]:
    """The self-test of all ranks, and what all of them found."""
    by_mpi = isinstance(ranks, selftest.ByMPI)
    sizes = (ranks.size, _horovod_size(ranks)) if by_mpi else (None, ranks.size)
    findings = [*findings, *examine_ranks(facts, *sizes)]
    gathered = ranks.gather((findings, facts["versions"]))
    outcome = selftest.run(ranks)
    merged = _merge([each for each, _ in gathered]) + _unlike([versions for _, versions in gathered])
    if outcome.failed:
        what = f"votes on ranks {outcome.failed} are not those of NumPy"
        merged.append(Finding(ERROR, what, "do not train; tell us, with the output of --json"))
    return outcome, in_order(merged)


@contextlib.contextmanager
def _given_up_after(seconds: float, findings: list[Finding]) -> Iterator[None]:
    """Ends the process, with what it knows, if what is inside takes longer: other ranks may never answer."""

    def give_up() -> None:
        what = f"not all ranks have answered within {seconds:g} s"
        remedy = "look at each host by itself, without mpirun: they may have other MPIs, or one of them none"
        told = diagnosis([Finding(ERROR, what, remedy), *findings])
        print(told, file=sys.stderr, flush=True)
        os._exit(1)  # the main thread waits inside MPI

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _horovod_size(ranks: selftest.ByMPI) -> int | None:
    """How many ranks Horovod sees over MPI; None if not all have one that can be asked. A collective."""
    hvd = facts_of.binding_over_mpi()
    if not all(ranks.gather(hvd is not None)):
        return None
    if not hvd.is_initialized():
        hvd.init()
    return hvd.size()


def _merge(of_ranks: list[list[Finding]]) -> list[Finding]:
    """Each finding once; with the ranks that have it, unless all do."""
    ranks = {
        each: [rank for rank, theirs in enumerate(of_ranks) if each in theirs] for all_ in of_ranks for each in all_
    }
    return [
        each if len(having) == len(of_ranks) else each._replace(what=f"rank {', '.join(map(str, having))}: {each.what}")
        for each, having in ranks.items()
    ]


def _unlike(versions: list[dict]) -> list[Finding]:
    """Ranks with other versions than the first."""
    found = []
    for name in _ALIKE:
        first = versions[0].get(name)
        other = next((rank for rank, theirs in enumerate(versions) if theirs.get(name) != first), None)
        if other is not None:
            what = f"{name} is {first} on rank 0 and {versions[other].get(name)} on rank {other}"
            found.append(Finding(WARNING, what, "install the same on all hosts"))
    return found


def _verdict(ranks: Any, outcome: selftest.Outcome) -> str:
    right = f"votes by {' and '.join(outcome.tried)} are those of NumPy, bit for bit"
    verdict = f"FAILED on ranks {outcome.failed}" if outcome.failed else right
    return f"Self-test of {ranks.size} ranks over {ranks.name}: {verdict}"
