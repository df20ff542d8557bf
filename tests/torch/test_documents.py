"""What the documentation has of PyTorch runs."""

import socket

import documents
import horovod.torch as hvd
import pytest
import torch
import torch_tasks as tasks
from ranks import RANK, SIZE
from torch.nn.parallel import DistributedDataParallel

import horovod_sign.torch as hvs

RANKS = (2,)  # enough to vote
pytestmark = pytest.mark.usefixtures("shared_folder")  # pages write files


@pytest.fixture
def torchrun(comm, monkeypatch):
    """What torchrun says to ranks."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = comm.bcast(server.getsockname()[1])
    said = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": RANK, "WORLD_SIZE": SIZE}
    for name, value in said.items():
        monkeypatch.setenv(name, str(value))
    yield
    torch.distributed.destroy_process_group()


def test_pages_run():
    tasks.assert_replicas_identical(documents.run_page("pytorch.md")["model"])


def test_pages_without_horovod_run(torchrun):
    tasks.assert_replicas_identical(documents.run_page("ddp.md")["net"])


def test_the_example_of_a_test_runs():
    (block,) = documents.blocks(documents.ROOT / "CONTRIBUTING.md", "python")
    names = {}
    block.run(names)
    names["test_a_parameter_moves_by_the_vote"]()


def test_diffs_run_without_horovod(torchrun):
    torch.distributed.init_process_group("gloo")
    names = {"torch": torch, "net": torch.nn.Linear(3, 2), "DistributedDataParallel": DistributedDataParallel}
    (block,) = (b for b in documents.blocks(documents.ROOT / "docs" / "using.md", "diff") if "ddp." in b.after)
    block.run(names)
    names["model"](torch.ones(4, 3)).sum().backward()
    assert names["state"].vote_statistics().coordinates == 8


def test_the_readme_becomes_a_script_that_votes():
    names = {"torch": torch, "model": torch.nn.Linear(3, 2)}
    documents.diff_of("README.md", "horovod_sign.torch").run(names)
    names["model"](torch.ones(4, 3)).sum().backward()
    names["optimizer"].step()
    assert names["optimizer"].vote_statistics().coordinates == 8


def test_diffs_run_on_a_script_of_horovods():
    """Those of pages, whose scripts are only hinted at, with what a Horovod script has by then."""
    for page in ("using.md", "ddp.md"):
        for block in documents.blocks(documents.ROOT / "docs" / page, "diff"):
            if "ddp." in block.after:
                continue
            model = torch.nn.Linear(3, 2)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            names = {"torch": torch, "hvd": hvd if "hvs" in block.after else hvs, "hvs": hvs, "model": model}
            block.run({**names, "optimizer": optimizer})
