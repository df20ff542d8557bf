"""Every benchmark runs, on 10,000 coordinates, prints what it is for, and writes what the pictures are drawn from."""

import json
import os
import subprocess
import sys
from pathlib import Path

from launching import launch

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments) -> str:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True).stdout


def test_those_of_ranks_and_the_pictures_of_their_results(tmp_path):
    results = tmp_path / "results.jsonl"
    worker = ROOT / "tests" / "launch" / "benchmarks_worker.py"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI"))}
    environment["PYTHONPATH"] = str(ROOT)
    status, output = launch([ROOT / "ci" / "run", "2", sys.executable, worker, results], 300, env=environment)
    assert status == 0, output
    assert "training step, 0.01 M coordinates, 2 ranks" in output and "communication of one bit" in output, output
    assert output.count("PyTorch") == 2 and "vote on 0.01 M coordinates" in output, output
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert all({"date", "commit", "machine", "load"} <= r.keys() for r in records)
    ms = {(r["kind"], r["method"]): r["ms"] for r in records}
    assert ms["step", "backward"] >= 20 and ("step", "one_bit_hierarchical") in ms  # a pause is no less
    assert {"float32", "float16", "byte_allgather", "bit_allgather", "counts", "exchange"} == {
        method for kind, method in ms if kind == "vote"
    }
    report = (tmp_path / "README.md").read_text()
    assert "votes win against float16" in report or "votes lose against float16" in report, report
    assert "| Signum |" in report and "| DDP, PowerSGD rank 1 |" in report and "Whole trainings" in report, report
    assert "A network of 26,506\nparameters" in report and "learns scikit-learn's digits" in report, report
    assert " 50 steps of 2 times 64\nimages" in report and "2 processes of one machine" in report, report
    assert "1,000,000" not in report and "**123**" not in report, report  # seconds and curves of other ranks
    assert "Seconds by step, medians of 1 rounds:" in report, report
    curves = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert {"date", "commit", "machine"} <= curves[0].keys() and {run["seed"] for run in curves} == {0, 1}
    for name in ("time-to-accuracy.png", "where-votes-win.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    pictures = run("plot", results).split()
    assert len(pictures) == 2 and all(Path(each).read_bytes().startswith(b"\x89PNG") for each in pictures)


def test_kernels(tmp_path):
    results = tmp_path / "kernels.jsonl"
    table = run("kernels", "--coordinates", "1e4", "--rounds", "2", "--only", "pack", "--json", results)
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert {"pack signbit", "pack onebit", "interpolate_pack"} <= {row["kernel"] for row in rows}
    assert all(row["kernel"] in table for row in rows)
