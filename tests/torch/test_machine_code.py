"""What the compiler makes of the kernels for GPUs: it is here without a GPU, as Triton brings it."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "support" / "machine_code.py"
KERNELS = ("pack", "interpolate_pack", "apply")
ASKED = [f"{kernel}:{dtype}:90" for kernel in KERNELS for dtype in ("float32", "bfloat16")]
ASKED += [f"{kernel}:float32:{architecture}" for kernel in KERNELS[1:] for architecture in (80, 100)]
OF_BITS = ["tally:float32:90", "compare:float32:90"]


def look(*asked: str) -> list[dict]:
    run = subprocess.run(
        [sys.executable, PROGRAM, *asked],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_machine_code():
    """No product is fused with a sum, which would round once where NumPy rounds twice; loads are wide; no spills."""
    *found, fused = look(*ASKED, *OF_BITS, "interpolate_pack:float32:90:fused")
    assert len(found) == len(ASKED) + len(OF_BITS)
    for each in found[: len(ASKED)]:
        assert each["fused"] == 0, each
        assert each["wide loads"] > 0, each
        assert each["spills"] == 0, each
    assert all(each["spills"] == 0 for each in found)
    assert fused["fused"] > 0, "so it would look"
