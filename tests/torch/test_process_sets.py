"""Votes of some ranks: what is the set's is not the job's. Rank 0 of three is left out, so ranks differ in both."""

import io

import horovod.torch as hvd
import numpy as np
import pytest
import torch
import torch_tasks as tasks
from mpi4py import MPI
from ranks import LAST, RANK, SIZE, process_sets
from torch_tasks import momenta, train

import horovod_sign.torch as hvs

RANKS = (3,)  # the fewest with a set of two, whose ranks are not the job's

INSIDE = list(range(1, max(SIZE, 2)))


@pytest.fixture
def those():
    """The process set of all ranks but the first."""
    with process_sets(hvd, INSIDE) as (some,):
        yield some


def build(some, kind="Signum", seed=1, **options):
    net = tasks.model(seed)
    if kind == "Signum":
        plain = hvs.Signum(net.parameters(), 0.01, momentum=0.5)
    else:
        plain, options["compression"] = torch.optim.SGD(net.parameters(), 0.1, 0.9), hvs.Compression.signum(0.5)
    return net, hvs.DistributedOptimizer(plain, net.named_parameters(), process_set=some, **options)


def from_file(state, root: int):
    """What torch.save and torch.load make of what one rank of the job has, on all ranks."""
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(MPI.COMM_WORLD.bcast(file.getvalue(), root)))


@pytest.mark.quick
@pytest.mark.parametrize("transport", ["auto", "exchange", "counts"])
def test_training_in_a_set_equals_the_simulation_of_its_ranks(those, transport):
    net = tasks.model()
    if RANK in INSIDE:
        net, optimizer = build(those, transport=transport)
    simulation = tasks.Simulation(tasks.values(net), len(INSIDE), 0.01, 0.5)
    for step in range(6):
        net.zero_grad()
        tasks.backward(net, step)
        everyone = tasks.gradients_of_all_ranks(net)
        if RANK in INSIDE:
            optimizer.step()
        simulation.step([everyone[rank] for rank in INSIDE])
    if RANK in INSIDE:
        assert optimizer.vote_statistics().bytes_float32 == 4 * sum(p.numel() for p in net.parameters())
        for value, simulated in zip(tasks.values(net), simulation.x, strict=True):
            np.testing.assert_allclose(value, simulated, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["Signum", "SGD"])
@pytest.mark.parametrize("root", [None, 0, 1])
def test_checkpoints_are_of_the_ranks_of_the_set(those, kind, root):
    """Each gets its own momentum back, and the root is the set's; a rank outside takes the mean."""
    state, mine = None, None
    if RANK in INSIDE:
        net, optimizer = build(those, kind)
        train(net, optimizer, range(3))
        mine = momenta(optimizer)
        state = hvs.gather_state_dict(optimizer, **({} if root is None else {"root_rank": root}))
        assert (state is not None) == (INSIDE[root or 0] == RANK)
    saved = from_file(state, INSIDE[root or 0])
    of_all = [each for each in MPI.COMM_WORLD.allgather(mine) if each is not None]
    assert any((left != right).any() for left, right in zip(*of_all, strict=True))
    with process_sets(hvd, [0]) as (alone,):
        _, resumed = build(those if RANK in INSIDE else alone, kind)
        resumed.load_state_dict(saved)
        expected = mine if RANK in INSIDE else [np.mean(each, axis=0) for each in zip(*of_all, strict=True)]
        for got, wanted in zip(momenta(resumed), expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=0 if RANK in INSIDE else 1e-5, atol=0)


@pytest.mark.limit(30)
@pytest.mark.parametrize("kind", ["Signum", "SGD"])
def test_an_overflow_in_a_set_is_the_affair_of_its_ranks(those, kind):
    """Nobody waits for the rank outside, which trains by itself. Who overflows abstains and keeps its momentum."""
    with process_sets(hvd, [0]) as (alone,):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        net, optimizer = build(those if RANK in INSIDE else alone, kind, grad_scaler=scaler)
        for step in range(1 if RANK == 0 else 4):
            optimizer.zero_grad()
            overflow = step == 1 and RANK == LAST
            handle = net[3].bias.register_hook(lambda g, bad=overflow: torch.full_like(g, torch.inf) if bad else g)
            scaler.scale(tasks.loss(net, step)).backward()
            before = momenta(optimizer)
            scaler.step(optimizer)
            scaler.update()
            handle.remove()
            if overflow:
                assert all((left == right).all() for left, right in zip(before, momenta(optimizer), strict=True))
    finals = MPI.COMM_WORLD.allgather(b"".join(value.tobytes() for value in tasks.values(net)))
    assert len({finals[rank] for rank in INSIDE}) == 1
    assert all(np.isfinite(value).all() for value in tasks.values(net))


def test_a_rank_outside_is_refused_and_the_others_vote(those):
    if RANK in INSIDE:
        net, optimizer = build(those)
        train(net, optimizer, range(1))
    else:
        with pytest.raises(ValueError, match=r"rank 0 is not in the process set \[1, 2\]"):
            build(those)


def test_a_rank_of_the_set_that_differs_is_told_to_its_ranks(those):
    if RANK in INSIDE:
        with pytest.raises(
            ValueError, match=r"parameter 0 is .*shape \(3,\).* on rank 0 and .*shape \(4,\).* on rank 1"
        ):
            p = torch.nn.Parameter(torch.zeros(3 if RANK == 1 else 4))
            hvs.DistributedOptimizer(hvs.SignSGD([p], 1.0), process_set=those)
