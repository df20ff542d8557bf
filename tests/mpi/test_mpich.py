"""majority_vote under MPICH, where its environment is there or can be made: see ci/mpich.sh."""

from pathlib import Path

import pytest
from launching import launch

SCRIPT = Path(__file__).resolve().parents[2] / "ci" / "mpich.sh"


@pytest.fixture(scope="module", autouse=True)
def environment():
    status, output = launch([SCRIPT, "--setup"], seconds=50)
    if status != 0:
        last = output.strip().splitlines()[-1]
        pytest.skip(f"no environment with MPICH, which ci/mpich.sh --setup makes: {last}")


@pytest.mark.fault("mpich")
@pytest.mark.parametrize("ranks", [2, 3])  # with ties and without; ci/mpich.sh by itself runs more
def test_under_mpich(ranks):
    status, output = launch([SCRIPT, str(ranks)], seconds=270)
    assert status == 0, output
