"""Votes of nodes: the mean of the gradients within a node, one vote per node, the same step on all ranks."""

import functools

import horovod.torch as hvd
import numpy as np
import pytest
import simulation
import torch
from ranks import SIZE, process_sets
from torch_rules import RULES

import horovod_sign.torch as hvs
from horovod_sign.voting.nodes import OVERRIDE

RANKS = (3,)  # nodes of two and one; of two and two, and of three: test_nodes.py


# Node of each rank: nodes of unequal numbers of ranks, one node, and nodes of one rank.
LAYOUTS = {"unequal": lambda rank: min(rank // 2, 1), "one": lambda rank: 0, "single": lambda rank: rank}


def means_by_node(gradients, node_of):
    """One list of gradients per node."""
    groups = {}
    for rank, of_rank in enumerate(gradients):
        groups.setdefault(node_of(rank), []).append(of_rank)
    return [[_mean(each) for each in zip(*ranks, strict=True)] for ranks in groups.values()]


def _mean(gradients):
    if all(g is None for g in gradients):
        return None
    zeros = np.zeros_like(next(g for g in gradients if g is not None))
    return np.mean([zeros if g is None else g for g in gradients], axis=0, dtype=np.float64).astype(np.float32)


@pytest.fixture(params=LAYOUTS)
def node_of(request, monkeypatch):
    monkeypatch.setenv(OVERRIDE, f"node{LAYOUTS[request.param](hvd.rank())}")
    return LAYOUTS[request.param]


@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize("transport", ["auto", "exchange", "counts"])
def test_training_equals_the_simulation(node_of, transport, abstain):
    """Gradients are small multiples of a power of two, so that their mean does not hang on the order of the sum."""
    shapes = [(3, 5), (64,), (130,), ()]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    make, rule = {
        "auto": (hvs.Signum, simulation.signum(0.9)),
        "exchange": (hvs.Lion, simulation.LION),
        "counts": (functools.partial(hvs.SignOptimizer, rule=RULES["TwoMomenta"][0]), RULES["TwoMomenta"][1]),
    }[transport]
    optimizer = hvs.DistributedOptimizer(make(parameters, 0.5), transport=transport, abstain=abstain, hierarchical=True)
    expected_of = simulation.Simulation(
        [p.detach().numpy() for p in parameters], len(set(map(node_of, range(hvd.size())))), 0.5, rule, abstain=abstain
    )
    for step in range(4):
        everyone = [
            [
                np.random.default_rng([step, rank, i]).integers(-2, 3, shape).astype(np.float32) * 12
                for i, shape in enumerate(shapes)
            ]
            for rank in range(hvd.size())
        ]
        if step == 2:
            everyone[-1][1] = None  # counts as zeros
        optimizer.zero_grad()
        mine = everyone[hvd.rank()]
        sum(
            (p * torch.from_numpy(np.asarray(g))).sum() for p, g in zip(parameters, mine, strict=True) if g is not None
        ).backward()
        optimizer.step()
        expected_of.step(means_by_node(everyone, node_of))
        for p, expected in zip(parameters, expected_of.x, strict=True):
            np.testing.assert_array_equal(p.detach().numpy(), expected)
    own, workers = isinstance(rule, simulation.Own), expected_of.workers
    for i, p in enumerate(parameters):
        # Of the mean and not of the sum, of which the signs are the same.
        state, node = optimizer.vote_state(p), node_of(hvd.rank())
        found = [state["fast"], state["slow"]] if own else [state["momentum_buffer"]]
        for each, expected in zip(found, workers.states[node][i] if own else [workers.m[node][i]], strict=True):
            np.testing.assert_allclose(each, expected, rtol=1e-6)


def test_16_bit_and_strided_gradients_are_averaged_in_float32(node_of):
    """Horovod averages neither bfloat16 nor what is not contiguous."""
    p = torch.nn.Parameter(torch.zeros(6, 4, dtype=torch.bfloat16).t())
    optimizer = hvs.DistributedOptimizer(torch.optim.SGD([p], 1.0), hierarchical=True)
    sign = -1.0 if hvd.rank() == 0 else 1.0
    p.grad = torch.full((6, 4), sign, dtype=torch.bfloat16).t()
    optimizer.step()
    of_nodes = {}
    for rank in range(hvd.size()):
        of_nodes.setdefault(node_of(rank), []).append(-1.0 if rank == 0 else 1.0)
    expected = np.sign(sum(np.sign(np.mean(signs)) for signs in of_nodes.values()))
    np.testing.assert_array_equal(p.detach().float().numpy(), np.full((4, 6), -expected))


def test_votes_of_some_ranks_are_refused():
    with process_sets(hvd, range(1, SIZE)) as (some,):
        if some.included():
            with pytest.raises(ValueError, match="hierarchical=True is for votes of all ranks: leave process_set out"):
                hvs.DistributedOptimizer(
                    hvs.SignSGD([torch.nn.Parameter(torch.zeros(3))], 1.0), hierarchical=True, process_set=some
                )
