"""Horovod's launcher over Gloo: votes without MPI, and an elastic job in which a worker dies and another joins."""

import os
import re
import sys
from pathlib import Path

import pytest
from launching import launch

HERE = Path(__file__).resolve().parent
HOROVODRUN = Path(sys.executable).with_name("horovodrun")

pytestmark = [
    pytest.mark.skipif(not HOROVODRUN.exists(), reason="horovodrun is not installed"),
    pytest.mark.asleep,
]


def horovodrun(*arguments, seconds: int = 240) -> str:
    """Runs it; its output, also if it fails or takes too long, which the test then shows."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{HOROVODRUN.parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, [HERE.parents[1], HERE.parent / "support"])),
        # A worker that died is noticed by its peers when the connection breaks, and at the latest after this.
        "HOROVOD_GLOO_TIMEOUT_SECONDS": "20",
    }
    command = [HOROVODRUN, "--gloo", "--network-interface", "lo", *map(str, arguments)]
    _, output = launch(command, seconds, env=environment)
    return output


@pytest.mark.fault("gloo", "torch")
def test_votes_over_gloo():
    output = horovodrun("-np", 3, sys.executable, HERE / "gloo_worker.py")
    assert output.count("votes equal the oracle") == 3, output


# Votes around another optimizer, without a job: keras/test_elastic_state.py and torch/test_elastic_state.py.
WORKERS = {"torch": "elastic_worker.py", "keras": "elastic_keras_worker.py"}


@pytest.mark.fault("elastic")
@pytest.mark.fault("gloo", "keras")
@pytest.mark.parametrize("worker", WORKERS)
def test_a_worker_dies_and_another_joins(worker, tmp_path):
    (tmp_path / "hosts").write_text("localhost:2\n127.0.0.1:1\n")
    discover = tmp_path / "discover.sh"
    discover.write_text(f"#!/bin/sh\ncat {tmp_path}/hosts\n")
    discover.chmod(0o755)
    options = ["-np", 3, "--min-np", 2, "--max-np", 3, "--host-discovery-script", discover]
    output = horovodrun(*options, sys.executable, HERE / WORKERS[worker], tmp_path, seconds=480)
    log = (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""
    sizes = [int(size) for size in re.findall(r"step \d+ size=(\d)", log)]
    order = [size for i, size in enumerate(sizes) if i == 0 or sizes[i - 1] != size]
    assert order == [3, 2, 3], log + output
    assert "joined size=3 the mean of the others: True, of 2 momenta" in log, log + output
    assert re.search(r"done size=3 step=\d+ identical=True", log), log + output
