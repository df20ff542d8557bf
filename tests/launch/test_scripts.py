"""`ci/test.sh` fails when anything that it runs fails, and goes no further, but for tests that fail: with stand-ins."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS = ["setup", "ruff check", "ruff format", "mypy", "pytest"]


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose tools write down that they ran, and fail if FAILS names them."""
    (tmp_path / "ci").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "ci" / "test.sh", tmp_path / "ci")
    for path, step in {
        "ci/setup.sh": "setup",
        ".venv/bin/ruff": '"ruff $1"',
        ".venv/bin/python": "$2",  # of python -m
    }.items():
        tool = tmp_path / path
        tool.write_text(
            f'#!/bin/bash\nstep={step}\necho "$step" >>"$0.log"; echo "$step" >>ran\n[ "$step" != "$FAILS" ]\n'
        )
        tool.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("arguments", [[], ["--quick"], ["tests/core", "-x"]], ids=" ".join)
@pytest.mark.parametrize("fails", [*STEPS, ""])
def test_whatever_fails_fails_the_whole(checkout, fails, arguments):
    done = subprocess.run(
        ["ci/test.sh", *arguments], cwd=checkout, env={**os.environ, "FAILS": fails}, timeout=20, check=False
    )
    ran = (checkout / "ran").read_text().splitlines()
    assert (done.returncode != 0) == bool(fails)
    again = ["pytest"] if fails == "pytest" and not arguments else []  # what failed, by itself
    assert ran == (STEPS[: STEPS.index(fails) + 1] + again if fails else STEPS)
