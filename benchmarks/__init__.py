"""Benchmarks: `python -m benchmarks NAME --help`, from the checkout."""

import sys
from pathlib import Path

# Their progress bar is that of the examples, which are scripts, not a package.
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
