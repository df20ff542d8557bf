"""`python -m horovod_sign`: alone, without frameworks, and as a self-test under mpirun."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import horovod_sign
from horovod_sign import __main__ as main

ROOT = Path(__file__).resolve().parents[2]


def run(*command) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI"))}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, cwd=ROOT)


def test_report_of_this_installation():
    finished = run(sys.executable, "-m", "horovod_sign")
    assert finished.returncode == 0
    assert f"horovod_sign v{horovod_sign.__version__}" in finished.stdout
    for row in ("[X] PyTorch", "[X] TensorFlow", "[X] Horovod", "[X] mpi", "[X] scalar"):
        assert row in finished.stdout, finished.stdout
    assert "Self-test" not in finished.stdout


def test_self_test_under_mpirun():
    finished = run(ROOT / "ci" / "run", "3", sys.executable, "-m", "horovod_sign")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("Self-test of 3 ranks: votes are those of NumPy, bit for bit") == 1
    assert finished.stdout.count("Kernels (in use") == 1


def test_what_is_missing_is_said(monkeypatch):
    for module in ("horovod_sign.torch", "horovod_sign.tensorflow", "mpi4py"):
        monkeypatch.setitem(sys.modules, module, None)
    report = main.report()
    assert "[ ] PyTorch (" in report
    assert "[ ] TensorFlow (" in report
    assert "[ ] mpi4py (" in report


class OneRank:
    """A communicator of one rank, for votes that go wrong."""

    rank, size = 0, 1

    @staticmethod
    def allgather(value):
        return [value]


def test_a_wrong_vote_fails_the_self_test(monkeypatch, capsys):
    monkeypatch.setattr(main, "majority_vote", lambda x, comm, **options: np.zeros(x.shape, np.int8))
    assert not main.self_test(OneRank)
    assert "FAILED on ranks [0]" in capsys.readouterr().out
