"""Starts the rank programs of tests/parallel under mpirun, at several rank counts, each launch with a time limit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RANKS = {
    "test_majority_vote.py": (1, 2, 3, 4, 6),
    "test_torch_votes.py": (1, 2, 3, 4),
    "test_torch_training.py": (1, 2, 3, 4),
    "test_torch_transports.py": (1, 2, 3),
    "test_torch_hierarchy.py": (1, 3, 4),
    "test_torch_faults.py": (1, 3, 5),
    "test_torch_models.py": (1, 3),
    "test_torch_restarts.py": (1, 2, 3),
    "test_statistics.py": (1, 5),
    "test_tensorflow_votes.py": (1, 2, 3, 4),
    "test_keras_models.py": (3,),
    "test_keras_training.py": (2, 3, 4),
    "test_keras_statistics.py": (1, 3, 4),
    "test_keras_restarts.py": (1, 3),
    # In a process of its own, since Horovod for TensorFlow cannot start after Horovod for PyTorch.
    "test_keras_optimizers.py": (1,),
}
# Rank 0's report is enough: it says what failed on other ranks.
ONE_REPORT = ("sh", "-c", '[ "$OMPI_COMM_WORLD_RANK" = 0 ] || exec >/dev/null; exec "$@"', "sh")
LAUNCHES = [(name, ranks) for name, counts in RANKS.items() for ranks in counts]


@pytest.mark.parametrize(("name", "ranks"), LAUNCHES)
def test_under_mpirun(name, ranks):
    finished, output = launch(ranks, ROOT / "tests" / "parallel" / name)
    assert finished == 0, f"{name} on {ranks} ranks:\n{output}"


def launch(ranks: int, program: Path, seconds: int = 480) -> tuple[int, str]:
    """Runs pytest on `program` on all ranks; its exit status and output, or a failure if it takes too long."""
    pytest_options = ["-q", "-x", "-p", "no:cacheprovider", "-o", f"faulthandler_timeout={seconds - 30}"]
    command = [ROOT / "ci" / "run", str(ranks), *ONE_REPORT, sys.executable, "-m", "pytest", *pytest_options, program]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            pytest.fail(f"{program.name} on {ranks} ranks did not end within {seconds} s:\n{output}", pytrace=False)
    return process.returncode, output


def test_every_rank_program_is_launched():
    assert {path.name for path in (ROOT / "tests" / "parallel").glob("test_*.py")} == set(RANKS)
