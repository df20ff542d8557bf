"""majority_vote under MPICH, where its environment is there or can be made: see ci/mpich.sh."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "ci" / "mpich.sh"


def run(*arguments: str, seconds: int) -> tuple[int | None, str]:
    """Runs the script; its exit status, None if it took too long, and its output."""
    with subprocess.Popen(
        [SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return None, output
    return process.returncode, output


@pytest.fixture(scope="module", autouse=True)
def environment():
    status, output = run("--setup", seconds=50)
    if status != 0:
        last = (output.strip().splitlines() or ["it took more than 50 s"])[-1]
        pytest.skip(f"no environment with MPICH, which ci/mpich.sh --setup makes: {last}")


@pytest.mark.parametrize("ranks", [2, 3])  # with ties and without; ci/mpich.sh by itself runs more
def test_under_mpich(ranks):
    status, output = run(str(ranks), seconds=270)
    assert status == 0, output
