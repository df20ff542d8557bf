"""Parameters frozen or unfrozen after wrapping: by all ranks alike, or one sentence on all; never a wait for ever."""

import horovod.torch as hvd
import pytest
import torch
import torch_tasks as tasks
from ranks import RANK

import horovod_sign.torch as hvs

RANKS = (2,)  # one that differs from another

pytestmark = pytest.mark.fault("frozen")


def wrap(net, **options):
    return hvs.DistributedOptimizer(hvs.SignSGD(net.parameters(), 0.01), net.named_parameters(), **options)


def step(optimizer, net, number, after_backward=lambda: None):
    optimizer.zero_grad()
    tasks.backward(net, number)
    after_backward()
    optimizer.step()


OPTIONS = [
    {"transport": "auto"},
    {"transport": "exchange"},
    {"transport": "counts"},
    {"transport": "exchange", "overlap": False},
    {"transport": "exchange", "bucket_cap_mb": 1e-3},
    {"transport": "auto", "bucket_cap_mb": 1e-3},
    {"transport": "counts", "abstain": False},
    {"hierarchical": True},
]


@pytest.mark.parametrize("late", [False, True], ids=["before backward", "after backward"])
@pytest.mark.parametrize("what", ["freezes", "unfreezes"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_rank_alone_is_told_to_all(options, what, late):
    if late and options["transport" if "transport" in options else "hierarchical"] != "exchange":
        pytest.skip("once is enough")
    net = tasks.model()
    net[3].weight.requires_grad_(what == "freezes")
    optimizer = wrap(net, **options)
    step(optimizer, net, 0)

    def change():
        if RANK == 1:
            net[3].weight.requires_grad_(what != "freezes")

    with pytest.raises(ValueError, match=r" on ranks? 0.* and .* on rank 1.*on all of them alike"):
        if not late:
            change()
        step(optimizer, net, 1, change if late else lambda: None)
        step(optimizer, net, 2)  # where all votes were on their way already, they are told in the next step


@pytest.mark.quick
@pytest.mark.parametrize("options", OPTIONS[:5], ids=str)
def test_all_alike_go_on_and_new_parameters_vote_at_once(options):
    net = tasks.model()
    frozen = net[3].weight
    frozen.requires_grad_(False)
    optimizer = wrap(net, **options)
    simulation = tasks.Simulation(tasks.values(net), hvd.size(), 0.01)
    for number in range(6):
        if number in (2, 4):
            frozen.requires_grad_(number == 2)
        step(optimizer, net, number)
        simulation.step(tasks.gradients_of_all_ranks(net))
    tasks.assert_simulated(net, simulation)


def test_one_rank_alone_unfreezes_where_nothing_was_voted_on():
    net = torch.nn.Linear(3, 2)
    net.requires_grad_(False)
    optimizer = wrap(net)
    optimizer.step()
    net.weight.requires_grad_(RANK == 1)
    with pytest.raises(ValueError, match=r"parameter 0 is .* on rank"):
        optimizer.step()
