"""Optimizers, models and momenta that are dropped are freed, as torch's are."""

import gc
import weakref

import pytest
import torch

import horovod_sign.torch as hvs
from horovod_sign.torch import direct

RANKS = (2,)  # with communicators and votes of their own

pytestmark = pytest.mark.fault("lifetimes")


def make(transport, kind, model=None, size=100):
    if model is None:
        torch.manual_seed(1)
        model = torch.nn.Linear(size, size)
    plain = hvs.Signum(model.parameters(), 0.1) if kind == "Signum" else torch.optim.Adam(model.parameters(), 0.1)
    return model, hvs.DistributedOptimizer(plain, model.named_parameters(), transport=transport)


def step(model, optimizer):
    model(torch.randn(2, 100)).square().sum().backward()
    optimizer.step()


@pytest.mark.fault("search")
@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("kind", ["Signum", "Adam"])
@pytest.mark.parametrize("transport", ["auto", "exchange", "counts"])
def test_dropped_models_and_optimizers_are_freed(transport, kind, used):
    alive = []
    for _ in range(3):
        model, optimizer = make(transport, kind)
        if used:
            step(model, optimizer)
            optimizer.zero_grad()
        else:  # a backward pass, whose votes nobody waits for, is not begun
            optimizer.zero_grad()
        votes = optimizer._votes
        alive += [weakref.ref(each) for each in (model, optimizer, votes, votes.pipeline, *model.parameters())]
    del model, optimizer, votes
    gc.collect()
    assert [each() for each in alive if each() is not None] == []


def test_a_model_outlives_its_optimizers():
    """It trains by the one that was made last, and the others are gone."""
    model, optimizer = make("exchange", "Signum")
    alive = [weakref.ref(optimizer)]
    for _ in range(3):
        step(model, optimizer)
        optimizer.zero_grad()
        _, optimizer = make("exchange", "Signum", model)
        alive.append(weakref.ref(optimizer))
    gc.collect()
    assert [each() is not None for each in alive] == [False] * 3 + [True]
    before = model.weight.detach().clone()
    step(model, optimizer)
    assert not torch.equal(model.weight, before)
    del optimizer
    gc.collect()
    model(torch.randn(2, 100)).sum().backward()  # nobody votes on it any more


def test_communicators_of_optimizers_that_nobody_has_any_more():
    """They are used again, also where the garbage collector would come late: each costs MPI 180 kB."""
    gc.collect()
    before = len(direct.communicators.free())
    gc.disable()
    try:
        for _ in range(50):
            hvs.DistributedOptimizer(hvs.SignSGD([torch.nn.Parameter(torch.zeros(3))], 0.01))
    finally:
        gc.enable()
    assert len(direct.communicators.free()) <= max(before, 32)
