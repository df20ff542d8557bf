"""Starts the rank programs of tests/parallel under mpirun, at several rank counts, each launch with a time limit."""

import sys
from pathlib import Path

import pytest
from launching import launch

ROOT = Path(__file__).resolve().parents[1]
RANKS = {
    "test_majority_vote.py": (1, 2, 3, 4, 6),
    "test_torch_votes.py": (1, 2, 3, 4),
    "test_torch_training.py": (1, 2, 3, 4),
    "test_torch_transports.py": (2, 3),
    "test_torch_hierarchy.py": (3, 4),
    "test_torch_nodes.py": (2, 4),
    "test_torch_faults.py": (1, 3, 5),
    "test_torch_models.py": (1, 3),
    "test_torch_restarts.py": (1, 2, 3),
    "test_statistics.py": (1, 5),
    "test_tensorflow_votes.py": (1, 2, 3, 4),
    "test_keras_models.py": (3,),
    "test_keras_training.py": (2, 3, 4),
    "test_keras_statistics.py": (1, 4),
    "test_keras_restarts.py": (1, 3),
    # In a process of its own, since Horovod for TensorFlow cannot start after Horovod for PyTorch.
    "test_keras_optimizers.py": (1,),
}
# Rank 0's report is enough: it says what failed on other ranks.
ONE_REPORT = ("sh", "-c", '[ "$OMPI_COMM_WORLD_RANK" = 0 ] || exec >/dev/null; exec "$@"', "sh")
LIMIT = 480  # seconds for a launch
LAUNCHES = [(name, ranks) for name, counts in RANKS.items() for ranks in counts]


@pytest.mark.parametrize(("name", "ranks"), LAUNCHES)
def test_under_mpirun(name, ranks):
    pytest_options = ["-q", "-x", "-p", "no:cacheprovider", "-o", f"faulthandler_timeout={LIMIT - 30}"]
    command = [ROOT / "ci" / "run", str(ranks), *ONE_REPORT, sys.executable, "-m", "pytest", *pytest_options]
    status, output = launch([*command, ROOT / "tests" / "parallel" / name], LIMIT)
    assert status == 0, f"{name} on {ranks} ranks:\n{output}"


def test_every_rank_program_is_launched():
    assert {path.name for path in (ROOT / "tests" / "parallel").glob("test_*.py")} == set(RANKS)
