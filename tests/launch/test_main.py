"""`python -m horovod_sign`: what is there, what is missing, and a vote of all ranks, however they were started."""

import os
import sys
from pathlib import Path

import doctor_facts
import numpy as np
import pytest
from launching import launch

from horovod_sign import __main__ as main
from horovod_sign.doctor import command, facts, selftest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HOROVODRUN = Path(sys.executable).with_name("horovodrun")


def run(*command, **variables) -> tuple[int | None, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI", "HOROVOD_S"))}
    path = f"{HOROVODRUN.parent}:{os.environ['PATH']}"
    return launch(command, 200, env={**inherited, "PATH": path, **variables}, cwd=ROOT)


@pytest.mark.skipif(not HOROVODRUN.exists(), reason="horovodrun is not installed")
def test_self_test_over_gloo():
    """By TensorFlow, where Horovod for PyTorch is not installed."""
    program = (sys.executable, HERE / "without.py", "horovod_sign.torch")
    status, output = run(HOROVODRUN, "--gloo", "--network-interface", "lo", "-np", "2", *program)
    assert status == 0, output
    assert output.count("Self-test of 2 ranks over Gloo: votes by exchange and counts are") == 1, output
    assert "[ ] PyTorch (" in output and "[X] TensorFlow" in output, output


def test_alone_and_without_anything(capfd, monkeypatch):
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "HOROVOD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    modules = [f"horovod_sign.{name}" for name in facts.ADAPTERS]
    for module in (*modules, "mpi4py", "mpi4py.MPI", *facts.BINDINGS):
        monkeypatch.setitem(sys.modules, module, None)
    assert main.main([]) == 1
    report = capfd.readouterr().out
    assert "[ ] PyTorch (" in report
    assert "[ ] TensorFlow (" in report
    assert "[ ] mpi4py, which horovod_sign.majority_vote needs (mpi4py is not installed: pip install mpi4py" in report
    assert "ERROR: horovod_sign.torch does not work: " in report and "A training could not work here" in report
    assert "elf-test" not in report
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert main.main([]) == 1
    report = capfd.readouterr().out
    assert "No self-test of the 2 ranks, started without mpi4py (mpi4py is not installed" in report
    monkeypatch.setenv("HOROVOD_SIZE", "3")
    assert main.main([]) == 1
    assert "No self-test of the 3 ranks, started by horovodrun --gloo: there is no Horovod" in capfd.readouterr().out


class OneRank:
    """A rank whose votes by some transports are wrong."""

    name, rank, size = "MPI", 0, 1

    def __init__(self, *wrong, abstain=(True, False)):
        self._wrong, self._abstain = wrong, abstain

    def vote(self, x, abstain, transport):
        right = np.sign(np.nan_to_num(x)) if abstain else np.where(x < 0, -1, 1)
        return 0 * right if transport in self._wrong and abstain in self._abstain else right

    @staticmethod
    def gather(mine):
        return [mine]

    @staticmethod
    def failed_ranks(passed):
        return [] if passed else [0]


def test_a_wrong_vote_fails_the_report(monkeypatch, capsys):
    """By either transport, with abstentions or without: the report says so, and its exit status."""
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "HOROVOD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    healthy = doctor_facts.healthy()
    monkeypatch.setattr(facts, "collect", lambda: healthy)
    for wrong in ({}, {"abstain": [True]}, {"abstain": [False]}):
        for transport in ("exchange", "counts"):
            monkeypatch.setattr(command, "_ranks", lambda facts, t=transport, w=wrong: (OneRank(t, **w), ""))
            assert main.main([]) == 1
            report = capsys.readouterr().out
            assert "Self-test of 1 ranks over MPI: FAILED on ranks [0]" in report
            assert "ERROR: votes on ranks [0] are not those of NumPy" in report
    monkeypatch.setattr(command, "_ranks", lambda facts: (OneRank(), ""))
    assert main.main([]) == 0
    report = capsys.readouterr().out
    assert "votes by exchange and counts are those of NumPy" in report and "Nothing is in the way" in report


def test_ranks_by_mpi_are_asked_for_their_verdict():
    class Comm:
        rank, size = 1, 3
        allgather = staticmethod(lambda mine: [True, mine, False])

    assert selftest.ByMPI(Comm).failed_ranks(True) == [2]
    assert selftest.ByMPI(Comm).failed_ranks(False) == [1, 2]
