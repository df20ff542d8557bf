"""The sparse autoencoder among the examples, in some steps on few patches."""

from pathlib import Path

import keras_tasks as tasks
import numpy as np
import pytest
from mpi4py import MPI
from ranks import RANK

RANKS = (2,)  # enough for momenta that differ

FEW = ["--images", "60", "--features", "32", "--k", "4", "--batch-size", "16", "--log-interval", "2", "--epochs", "2"]


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "examples" / "tensorflow2"))
    import tensorflow2_keras_sparse_autoencoder

    return tensorflow2_keras_sparse_autoencoder


@pytest.mark.parametrize("optimizer", ["signum", "adam", "float32-adam"])
def test_replicas_are_identical_and_go_on_from_a_checkpoint(example, optimizer, tmp_path, capfd):
    arguments = [*FEW, "--optimizer", optimizer]
    checkpoint = MPI.COMM_WORLD.bcast(str(tmp_path / "{epoch}.keras"))
    net = example.main([*arguments, "--checkpoint", checkpoint])
    again = example.main([*arguments, "--resume", checkpoint.format(epoch=1)])
    printed = capfd.readouterr().out
    assert (printed.count("variance unexplained") == 3) == (RANK == 0), printed
    for each in (net, again):
        tasks.assert_replicas_identical(tasks.values(each))
        assert each.optimizer.iterations == net.optimizer.iterations > 0
        np.testing.assert_allclose(np.linalg.norm(each.decoder, axis=1), 1, rtol=1e-3)
