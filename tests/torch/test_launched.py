"""A process that was started with others, and does not know of them."""

import horovod.torch as hvd
import pytest
import torch
from separate_trainings import assert_warned_of_once

import horovod_sign.torch as hvs

RANKS = (1,)  # what such a process takes itself for


def wrap():
    hvs.DistributedOptimizer(hvs.SignSGD([torch.nn.Parameter(torch.zeros(3))], 0.1))


@pytest.mark.fault("separate")
@pytest.mark.parametrize("ask", [wrap, hvs.node_process_sets], ids=["DistributedOptimizer", "node_process_sets"])
def test_separate_trainings_are_warned_of_once(monkeypatch, ask):
    assert_warned_of_once(monkeypatch, ask)
    assert hvd.size() == 1


@pytest.mark.fault("elastic-left")
def test_elastic_variable_left_behind_is_named(monkeypatch):
    """HOROVOD_ELASTIC=1 of an earlier job, in a job that is not elastic."""
    monkeypatch.setenv("HOROVOD_ELASTIC", "1")
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD([p], 0.1))
    p.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"says HOROVOD_ELASTIC=1\. .* unset it"):
        optimizer.step()
