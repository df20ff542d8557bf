"""A process that was started with others, and does not know of them."""

import warnings

import horovod.torch as hvd
import pytest
import torch

import horovod_sign.torch as hvs
from horovod_sign import launched

RANKS = (1,)  # what such a process takes itself for


def wrap():
    hvs.DistributedOptimizer(hvs.SignSGD([torch.nn.Parameter(torch.zeros(3))], 0.1))


@pytest.mark.parametrize("ask", [wrap, hvs.node_process_sets], ids=["DistributedOptimizer", "node_process_sets"])
def test_separate_trainings_are_warned_of_once(monkeypatch, ask):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    launched._warn.cache_clear()
    with pytest.warns(RuntimeWarning, match="SLURM_STEP_NUM_TASKS says that 2 were started together"):
        ask()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask()
    launched._warn.cache_clear()
    assert hvd.size() == 1


def test_elastic_variable_left_behind_is_named(monkeypatch):
    """HOROVOD_ELASTIC=1 of an earlier job, in a job that is not elastic."""
    monkeypatch.setenv("HOROVOD_ELASTIC", "1")
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD([p], 0.1))
    p.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"says HOROVOD_ELASTIC=1\. .* unset it"):
        optimizer.step()
