"""What carries votes, and that it does not matter: by Horovod's engine or by MPI itself, with late and joined ranks."""

import time

import horovod.torch as hvd
import numpy as np
import pytest
import torch
import torch_tasks as tasks
from mpi4py import MPI
from ranks import LAST

import horovod_sign.torch as hvs
from horovod_sign.torch import direct, pipeline
from horovod_sign.torch.direct import DirectCollectives

RANKS = (2, 3)  # even, where votes tie; odd, with chunks of unequal length


def wrap(net, **options):
    optimizer = hvs.Signum(net.parameters(), 0.01)
    return hvs.DistributedOptimizer(optimizer, named_parameters=net.named_parameters(), **options)


def train(optimizer, net, steps=4, late=None):
    """Steps on each rank's own images; before step `late` the last rank keeps the others waiting."""
    for step in range(steps):
        if step == late and hvd.rank() == LAST:
            time.sleep(1.0)
        optimizer.zero_grad()
        tasks.backward(net, step)
        optimizer.step()
    return tasks.values(net)


def goes_direct(optimizer) -> bool:
    return isinstance(optimizer._votes.pipeline._collectives, DirectCollectives)


def assert_equal_to_the_engine_s(values, net, steps=4):
    reference = tasks.model()
    expected = train(wrap(reference, transport="exchange"), reference, steps)
    tasks.assert_replicas_identical(net)
    for left, right in zip(values, expected, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("abstain", [True, False])
def test_small_models_go_past_the_engine_and_train_alike(abstain):
    nets = {transport: tasks.model() for transport in ("auto", "exchange", "counts")}
    optimizers = {name: wrap(net, transport=name, abstain=abstain) for name, net in nets.items()}
    assert [goes_direct(optimizer) for optimizer in optimizers.values()] == [True, False, False]
    results = {name: train(optimizers[name], net) for name, net in nets.items()}
    for name, net in nets.items():
        tasks.assert_replicas_identical(net)
        for left, right in zip(results[name], results["exchange"], strict=True):
            np.testing.assert_array_equal(left, right)
    assert optimizers["auto"].bytes_sent == optimizers["exchange"].bytes_sent > 0


def test_large_models_take_the_engine():
    p = torch.nn.Parameter(torch.zeros(4_000_000))
    assert not goes_direct(hvs.DistributedOptimizer(hvs.SignSGD([p], 1.0)))


def test_all_take_the_engine_if_one_rank_must(monkeypatch):
    if hvd.rank() == LAST:
        monkeypatch.setattr(direct, "available", lambda process_set: False)
    net = tasks.model()
    optimizer = wrap(net)
    assert not goes_direct(optimizer)
    assert_equal_to_the_engine_s(train(optimizer, net), net)


def test_a_late_rank_is_waited_for(monkeypatch):
    """The others ask whether it has joined; it answers, and then they go on."""
    monkeypatch.setattr(direct, "ASKS_AFTER", 0.2)
    net = tasks.model()
    optimizer = wrap(net)
    asked = []
    ask = hvd.allreduce_async
    monkeypatch.setattr(hvd, "allreduce_async", lambda *args, **kwargs: asked.append(kwargs) or ask(*args, **kwargs))
    values = train(optimizer, net, late=2)
    assert min(MPI.COMM_WORLD.allgather(len(asked))) > 0
    monkeypatch.undo()
    assert_equal_to_the_engine_s(values, net)


@pytest.mark.fault("join-exchange")
def test_joined_ranks_are_one_clear_sentence(monkeypatch):
    monkeypatch.setattr(direct, "ASKS_AFTER", 0.2)
    net = tasks.model()
    optimizer = wrap(net)
    assert goes_direct(optimizer)
    if hvd.rank() > 0:
        with pytest.raises(RuntimeError, match=r'called hvd\.join\(\).*transport="counts"'):
            train(optimizer, net, steps=1)
    hvd.join()


@pytest.mark.fault("two-models")
@pytest.mark.parametrize("transport", ["auto", "exchange", "counts"])
def test_two_optimizers_stepped_in_an_order_that_differs_between_ranks(transport):
    """Both backward passes are done: whoever waits for one lets the votes of the other go on."""
    nets = [tasks.model(seed) for seed in (1, 2)]
    optimizers = [wrap(net, transport=transport, check_replicas=2) for net in nets]
    starts = [tasks.values(net) for net in nets]
    for step in range(4):
        for optimizer, net in zip(optimizers, nets, strict=True):
            optimizer.zero_grad()
            tasks.backward(net, step)
        for optimizer in optimizers if hvd.rank() % 2 else reversed(optimizers):
            optimizer.step()
    for net, start in zip(nets, starts, strict=True):
        tasks.assert_replicas_identical(net)
        assert any((left != right).any() for left, right in zip(tasks.values(net), start, strict=True))


def test_what_is_wrong_with_one_optimizer_is_not_raised_in_the_step_of_another(monkeypatch):
    """Its votes would start while the other waits; it says so itself, in each of its own steps."""
    monkeypatch.setattr(pipeline, "_HELD_UP", 0.0)
    p = torch.nn.Parameter(torch.zeros(3))
    broken = hvs.DistributedOptimizer(hvs.SignSGD([p], 1.0), transport="exchange")
    p.data = torch.zeros(1000)
    with pytest.raises(RuntimeError, match="now has 1000"):
        p.sum().backward()
        broken.step()
    net = tasks.model()
    values = train(wrap(net, transport="exchange"), net, late=1)
    assert_equal_to_the_engine_s(values, net)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="now has 1000"):
            broken.step()
