"""Whole PyTorch programs of which one rank ends early, or whose ranks are held up: the others are told, or go on."""

import os
import sys
from pathlib import Path

import pytest
from launching import launch

ROOT = Path(__file__).resolve().parents[2]
ENDED = "after 3 steps: Horovod has been shut down"


def run(ranks: int, worker: str, *arguments: str, seconds: int = 200) -> tuple[int | None, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI"))}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [ROOT, ROOT / "tests" / "support"]))
    command = [ROOT / "ci" / "run", str(ranks), sys.executable, ROOT / "tests" / "launch" / worker, *arguments]
    return launch(command, seconds, env=environment)


@pytest.mark.fault("ends-early", "torch")
@pytest.mark.parametrize(
    ("how", "transport", "first", "ranks"),
    [
        ("short data", "auto", "horovod", 3),  # two are told, one of them perhaps by the other's end
        ("short data", "auto", "mpi4py", 2),
        ("short data", "exchange", "horovod", 2),
        ("exception", "auto", "horovod", 2),
        ("interrupt", "auto", "horovod", 2),
        ("interrupted while it waits", "auto", "horovod", 3),  # one waits with it
        ("shutdown", "auto", "horovod", 2),
        ("shutdown", "counts", "horovod", 2),
    ],
)
def test_the_others_are_told_by_an_exception_of_horovods(how, transport, first, ranks):
    """Also where the votes go past Horovod's engine, which finalizes MPI as soon as one rank has ended."""
    status, output = run(ranks, "torch_endings_worker.py", how, transport, first)
    assert output.count(ENDED) == ranks - 1, output
    assert "An error occurred in MPI" not in output and "Segmentation" not in output, output
    assert "after MPI_FINALIZE" not in output, output
    if how in ("short data", "shutdown"):
        assert status == 0 and "rank 1 is done" in output, output
    else:
        assert status and ("of the user's own" if how == "exception" else "KeyboardInterrupt") in output, output


@pytest.mark.fault("suspended", "torch")
@pytest.mark.parametrize("transport", ["auto", "exchange"])
def test_ranks_that_are_suspended_go_on(transport):
    """One after the other, in both orders: none is taken for joined, none waits for ever, replicas stay the same."""
    status, output = run(3, "torch_suspended_worker.py", transport)
    assert status == 0 and output.count("is done") == 3, output
