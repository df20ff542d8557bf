"""What the documentation has of PyTorch runs."""

import documents
import horovod.torch as hvd
import pytest
import torch
import torch_tasks as tasks

import horovod_sign.torch as hvs

RANKS = (2,)  # enough to vote


@pytest.mark.parametrize("page", ["pytorch.md"])
def test_pages_run(page):
    tasks.assert_replicas_identical(documents.run_page(page)["model"])


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
            model = torch.nn.Linear(3, 2)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            names = {"torch": torch, "hvd": hvd if "hvs" in block.after else hvs, "hvs": hvs, "model": model}
            block.run({**names, "optimizer": optimizer})
