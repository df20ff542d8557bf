"""The sparse autoencoder among the examples, in some steps on few patches."""

from pathlib import Path

import pytest
import torch
import torch_tasks as tasks
from ranks import RANK

RANKS = (2,)  # enough for momenta that differ

FEW = ["--images", "60", "--features", "32", "--k", "4", "--batch-size", "16", "--log-interval", "2"]


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "examples" / "pytorch"))
    import pytorch_sparse_autoencoder

    threads = torch.get_num_threads()
    yield pytorch_sparse_autoencoder
    torch.set_num_threads(threads)


@pytest.mark.parametrize("optimizer", ["signum", "adam", "float32-adam"])
def test_it_goes_on_from_its_checkpoint_as_if_never_ended(example, optimizer, tmp_path, capfd):
    arguments = [*FEW, "--epochs", "2", "--optimizer", optimizer]
    net = example.main([*arguments, "--checkpoint", str(tmp_path / "{epoch}.pt")])
    tasks.assert_replicas_identical(net)
    assert ("variance unexplained" in capfd.readouterr().out) == (RANK == 0)
    again = example.main([*arguments, "--resume", str(tmp_path / "1.pt")])
    assert "epoch 1 " not in capfd.readouterr().out
    tasks.assert_equal_on_all_ranks(tasks.values(again), tasks.values(net))
