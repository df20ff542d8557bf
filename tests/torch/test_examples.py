"""The sparse autoencoder and the ResNet-20 among the examples, in some steps on few images."""

import json

import pytest
import torch_tasks as tasks
from cifar10 import write_cifar10
from ranks import RANK

RANKS = (2,)  # enough for momenta that differ

FEW = ["--images", "60", "--features", "32", "--k", "4", "--batch-size", "16", "--log-interval", "2"]


@pytest.mark.parametrize("optimizer", ["signum", "adam", "float32-adam"])
def test_it_goes_on_from_its_checkpoint_as_if_never_ended(example, optimizer, tmp_path, capfd):
    arguments = [*FEW, "--epochs", "2", "--optimizer", optimizer]
    main = example("pytorch/pytorch_sparse_autoencoder").main
    net = main([*arguments, "--checkpoint", str(tmp_path / "{epoch}.pt")])
    tasks.assert_replicas_identical(net)
    assert ("variance unexplained" in capfd.readouterr().out) == (RANK == 0)
    again = main([*arguments, "--resume", str(tmp_path / "1.pt")])
    assert "epoch 1 " not in capfd.readouterr().out
    tasks.assert_equal_on_all_ranks(tasks.values(again), tasks.values(net))


FEW_IMAGES = ["--batch-size", "16", "--width", "4", "--blocks", "1", "--no-cuda", "--milestones", "7"]


@pytest.fixture
def resnet20(example):
    return example("reproduce/resnet20_torch")


@pytest.mark.parametrize("optimizer", ["signum", "sgd"])
def test_resnet20_goes_on_after_an_interruption_as_if_there_was_none(resnet20, optimizer, tmp_path, capfd):
    folder = write_cifar10(tmp_path)
    arguments = [*FEW_IMAGES, "--cifar", str(folder), "--optimizer", optimizer]
    kept = ["--checkpoint", str(tmp_path / "last.pt"), "--log", str(tmp_path / "log.jsonl")]
    net = resnet20.main([*arguments, "--epochs", "2"])
    tasks.assert_replicas_identical(net)
    resnet20.main([*arguments, *kept, "--epochs", "1"])
    again = resnet20.main([*arguments, *kept, "--epochs", "2"])
    assert ("from epoch 1 on" in capfd.readouterr().out) == (RANK == 0)
    tasks.assert_equal_on_all_ranks(tasks.values(again), tasks.values(net))
    if RANK == 0:
        lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == [1, 2] and lines[1]["bytes"] == 2 * lines[0]["bytes"] > 0


def test_resnet20_has_the_parameters_of_the_paper_and_its_curves_are_drawn(resnet20, monkeypatch, tmp_path, capsys):
    assert sum(p.numel() for p in resnet20.make_model(3, 16, 3).parameters()) == 269_722
    import data
    import resnet20_curves

    digits = data._digits()
    monkeypatch.setattr(data, "load", lambda *_: digits)
    few = ["--out", str(tmp_path), "--optimizers", "signum", "--seeds", "1", "--images", "64", "--test-images", "50"]
    few += ["--width", "2", "--blocks", "1", "--epochs", "2", "--batch-size", "32"]
    args = resnet20_curves.parse_arguments(few)
    size = {name: getattr(args, name) for name in resnet20_curves.SIZE}
    tuned = [
        {"optimizer": "signum", "seed": 0, "ranks": 1, "lr": lr, "accuracy": [0.2, accuracy], "commit": f"of {lr:g}"}
        for lr, accuracy in ((3e-4, 0.3), (1e-3, 0.4))
    ]
    rest = {**size, "framework": "torch", "bytes": [0, 0], "data": "digits", "date": "", "machine": "", "load": 0.5}
    trainings = tmp_path / "trainings.jsonl"
    trainings.write_text("".join(json.dumps({**line, **rest}) + "\n" for line in tuned))  # as if on one rank
    resnet20_curves.main(few)
    if RANK == 0:
        new = json.loads(trainings.read_text().splitlines()[-1])
        assert (
            new["ranks"] == 2 and new["lr"] == 1e-3 and len(new["accuracy"]) == 2 and {"date", "commit"} <= new.keys()
        )
        resnet20_curves.main([*few, "--draw"])
        assert "**0.001** (40.0)" in capsys.readouterr().out and "**0.001**" in (tmp_path / "README.md").read_text()
        assert "of 0.0003" in (tmp_path / "README.md").read_text()  # though only the grid has it
        assert (tmp_path / "resnet20.png").read_bytes().startswith(b"\x89PNG")
