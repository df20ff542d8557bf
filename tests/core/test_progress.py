"""Progress of examples and benchmarks, where nobody watches: sober lines."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROGRAM = """
import progress
progress.SECONDS_BETWEEN_LINES = 0
for step in (steps := progress.Progress(range(3), "training")):
    steps.note(f"loss {step}")
"""


def test_a_log_has_lines():
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI", "HOROVOD_RANK"))}
    command = [sys.executable, "-c", PROGRAM]
    environment["PYTHONPATH"] = str(EXAMPLES)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "".join(f"training  step {i}/3  loss {i}\n" for i in range(3))
    assert "\r" not in done.stderr and "training: step 3 of 3, 0 s, 0 s left\n" in done.stderr
