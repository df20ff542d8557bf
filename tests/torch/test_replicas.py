"""Ranks whose replicas part, or are about to: told on all of them, once, with rank and value."""

import warnings

import horovod.torch as hvd
import numpy as np
import pytest
import torch
import torch_tasks as tasks
from ranks import LAST, RANK

import horovod_sign.torch as hvs

RANKS = (3,)  # two that agree, and one that differs

pytestmark = pytest.mark.fault("replicas")

OPTIMIZERS = {
    "SignSGD": lambda net, **numbers: hvs.SignSGD(net.parameters(), **{"lr": 0.01, **numbers}),
    "Signum": lambda net, **numbers: hvs.Signum(net.parameters(), **{"lr": 0.01, **numbers}),
    "SGD": lambda net, **numbers: torch.optim.SGD(net.parameters(), **{"lr": 0.01, "foreach": True, **numbers}),
    "AdamW": lambda net, **numbers: torch.optim.AdamW(net.parameters(), **{"lr": torch.tensor(0.01), **numbers}),
}


def told(optimizer, net, steps=2, before_step=lambda step: None) -> list[str]:
    """What is warned of in some steps."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for step in range(steps):
            optimizer.zero_grad()
            tasks.backward(net, step)
            before_step(step)
            optimizer.step()
    return [str(each.message) for each in warned if "ranks differ" in str(each.message)]


@pytest.mark.parametrize(
    ("kind", "key", "usual", "of_the_last", "transport"),
    [
        ("SignSGD", "lr", 0.01, 0.02, "auto"),
        ("Signum", "weight_decay", 0.0, 0.1, "exchange"),
        ("Signum", "momentum", 0.9, 0.5, "auto"),
        ("SGD", "momentum", 0, 0.9, "counts"),
        ("AdamW", "betas", (0.9, 0.999), (0.9, 0.99), "exchange"),
    ],
)
def test_a_number_that_differs_is_told_on_all_ranks_once(kind, key, usual, of_the_last, transport):
    net = tasks.model()
    optimizer = OPTIMIZERS[kind](net)
    optimizer = hvs.DistributedOptimizer(optimizer, net.named_parameters(), transport=transport, check_replicas=1)
    optimizer.param_groups[0][key] = of_the_last if RANK == LAST else usual
    (message,) = [text for text in told(optimizer, net) if "checksum" not in text]
    assert f"{key} of group 0 is {usual} on ranks 0, 1 and {of_the_last} on rank 2" in message


def test_a_scheduler_that_goes_by_each_ranks_own_loss_is_told():
    """In the step in which the next comparison is due, after which the parameters differ too."""
    net = tasks.model()
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD(net.parameters(), 0.01), net.named_parameters(), check_replicas=3)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    seen = []

    def plateau(step):
        scheduler.step(1.0 if RANK == 1 else 1.0 / (1 + step))
        seen.append(optimizer.param_groups[0]["lr"])

    messages = told(optimizer, net, 5, plateau)
    assert len(messages) == 2
    assert f"lr of group 0 is 0.01 on ranks 0, 2 and {0.01 * 0.5**3} on rank 1" in messages[0]
    assert "at step 4" in messages[0] and "ReduceLROnPlateau" in messages[0]
    assert "checksum of parameter 0.weight" in messages[1] and "broadcast_parameters" in messages[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_coordinate_that_differs_is_told(dtype):
    net = torch.nn.Linear(40, 50, bias=False).to(dtype)
    hvd.broadcast_parameters({"w": net.weight.float()}, 0)
    with torch.no_grad():
        net.weight.copy_(torch.arange(2000).view(50, 40))
        if RANK == 1:
            net.weight[49, 39] = 0.5
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD(net.parameters(), 0.01), net.named_parameters())
    with pytest.warns(RuntimeWarning, match=r"checksum of parameter weight is \w+ on ranks 0, 2 and \w+ on rank 1"):
        optimizer.step()


def test_parameters_of_one_rank_in_another_order_in_memory_are_the_same():
    net = torch.nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.arange(p.numel()).view(p.shape))
    optimizer = hvs.DistributedOptimizer(torch.optim.SGD(net.parameters(), 0.0), check_replicas=1, overlap=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        optimizer._votes.replicas.begin()
        optimizer._votes.replicas.conclude()
        if RANK == 1:
            net.to(memory_format=torch.channels_last)
        optimizer._votes.replicas.begin()
        optimizer._votes.replicas.conclude()


def test_a_large_model_is_compared_part_by_part(monkeypatch):
    monkeypatch.setattr("horovod_sign.torch.replicas.CHECKED_BYTES", 1000)
    net = torch.nn.Sequential(*[torch.nn.Linear(10, 10, bias=False) for _ in range(9)])
    for p in net.parameters():
        torch.nn.init.zeros_(p)
    with torch.no_grad():
        net[6].weight[5, 5] = RANK
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD(net.parameters(), 0.0), net.named_parameters(), check_replicas=2)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(6):
            optimizer.step()
    messages = [str(each.message) for each in warned if "ranks differ" in str(each.message)]
    assert len(messages) == 1 and "parameter 6.weight" in messages[0] and "at step 5" in messages[0]


def test_what_is_the_same_is_not_told_of():
    """Nor what may differ: how an optimizer computes, and entries of the user's own."""
    net = tasks.model()
    optimizer = OPTIMIZERS["SGD"](net, foreach=RANK == 0)
    optimizer.param_groups[0]["of my own"] = RANK
    optimizer = hvs.DistributedOptimizer(optimizer, net.named_parameters(), check_replicas=1)
    assert told(optimizer, net, 3) == []
    tasks.assert_replicas_identical(net)


def test_ranks_that_have_joined_do_not_count():
    p = torch.nn.Parameter(torch.zeros(10))
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD([p], 1.0), transport="counts", check_replicas=1)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for step in range(1 + 2 * RANK):
            p.grad = torch.ones(10)
            optimizer.step()
            if step == 3:
                optimizer.param_groups[0]["lr"] = 2.0  # rank 2 alone is left
    hvd.join()
    assert not [each for each in warned if "ranks differ" in str(each.message)]


def test_never():
    net = tasks.model()
    optimizer = OPTIMIZERS["SGD"](net, lr=0.01 * (1 + RANK))
    optimizer = hvs.DistributedOptimizer(optimizer, net.named_parameters(), check_replicas=0)
    assert told(optimizer, net) == []


@pytest.mark.parametrize("every", [-1, 2.5, None])
def test_not_a_number_of_steps_is_one_sentence(every):
    net = tasks.model()
    with pytest.raises(ValueError, match="check_replicas must be a number of steps"):
        hvs.DistributedOptimizer(OPTIMIZERS["SGD"](net), check_replicas=every)


def test_bytes_of_what_is_compared_do_not_count_as_the_votes():
    p = torch.nn.Parameter(torch.zeros(640))
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD([p], 1.0), transport="exchange", check_replicas=1)
    sent = []
    for _ in range(2):
        p.grad = torch.from_numpy(np.ones(640, np.float32))
        optimizer.step()
        sent.append(optimizer.bytes_sent)
    assert sent[0] == sent[1]
