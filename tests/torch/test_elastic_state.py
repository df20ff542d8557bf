"""What `hvs.elastic.TorchState` does when ranks have changed, without an elastic job's launcher (see launch/)."""

import numpy as np
import pytest
import torch
import torch_tasks as tasks
from mpi4py import MPI
from ranks import LAST, RANK, SIZE
from torch_tasks import momenta, train

import horovod_sign.torch as hvs

RANKS = (3,)  # one that joins, and two whose momenta have a mean

KINDS = ["Signum", "SGD"]


@pytest.fixture(autouse=True)
def elastic(monkeypatch):
    monkeypatch.setenv("HOROVOD_ELASTIC", "1")


def build(kind="Signum", **options):
    net = tasks.model()
    if kind == "Signum":
        plain = hvs.Signum(net.parameters(), 0.01, momentum=0.8, warmup=True)
    else:
        plain, options["compression"] = torch.optim.SGD(net.parameters(), 0.1, 0.9), hvs.Compression.signum(0.8, True)
    return net, hvs.DistributedOptimizer(plain, net.named_parameters(), **options)


def steps_of(optimizer) -> set[int]:
    return {optimizer.vote_state(p)["step"] for p in optimizer.param_groups[0]["params"]}


def test_an_elastic_job_needs_our_state():
    net, optimizer = build()
    tasks.backward(net, 0)
    with pytest.raises(RuntimeError, match=r"keep the optimizer in hvs\.elastic\.TorchState"):
        optimizer.step()
    hvs.elastic.TorchState(model=net, optimizer=optimizer)
    optimizer.step()
    tasks.assert_replicas_identical(net)


def test_a_model_of_16_bits_is_shared():
    net = tasks.model().bfloat16()
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(RANK + 1)
    hvs.elastic.TorchState(model=net).sync()
    assert all((p == 1).all() for p in net.parameters())


@pytest.mark.quick
@pytest.mark.parametrize("kind", KINDS)
def test_momenta_stay_with_their_ranks_and_who_joins_gets_the_mean(kind):
    net, optimizer = build(kind)
    state = hvs.elastic.TorchState(model=net, optimizer=optimizer, batch=0)
    train(net, optimizer, range(4))
    mine = momenta(optimizer)
    everyone = MPI.COMM_WORLD.allgather(mine)
    assert any((left != right).any() for left, right in zip(*everyone[:2], strict=True))
    if RANK == LAST:  # a process of its own that has just begun
        net, optimizer = build(kind)
        state = hvs.elastic.TorchState(model=net, optimizer=optimizer, batch=0)
    else:
        state.on_reset()
    state.sync()
    mean = [np.mean(each, axis=0) for each in zip(*everyone[:LAST], strict=True)]
    for got, kept, expected in zip(momenta(optimizer), mine, mean, strict=True):
        if RANK == LAST:
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8)
        else:
            np.testing.assert_array_equal(got, kept)
    assert steps_of(optimizer) == {4}
    tasks.assert_replicas_identical(net)
    before = optimizer.vote_statistics().step
    train(net, optimizer, range(4, 6))
    assert optimizer.vote_statistics().step == before + 2
    tasks.assert_replicas_identical(net)
    kept = momenta(optimizer)
    state.sync()  # who joined has a history now: everybody keeps what it has
    tasks.assert_equal_on_all_ranks(momenta(optimizer), kept)


def test_who_has_joined_has_a_history():
    """From then on its momentum is its own, and counts in the mean of those who join later."""
    net, optimizer = build()
    state = hvs.elastic.TorchState(model=net, optimizer=optimizer)
    if RANK != LAST:
        optimizer._votes.has_history = True
    state.sync()
    for m in (optimizer.vote_state(p)["momentum_buffer"] for p in net.parameters()):
        m.fill_(float(RANK))
    state.sync()
    assert all((m == RANK).all() for m in momenta(optimizer))


def test_before_anybody_has_voted_all_start_alike():
    """There is no momentum to share yet: as rank 0 has it."""
    net, optimizer = build()
    state = hvs.elastic.TorchState(model=net, optimizer=optimizer)
    state.sync()
    assert all((m == 0).all() for m in momenta(optimizer))
    train(net, optimizer, range(2))
    kept = momenta(optimizer)
    state.sync()
    tasks.assert_equal_on_all_ranks(momenta(optimizer), kept)
    tasks.assert_replicas_identical(net)


@pytest.mark.parametrize("transport", ["exchange", "counts"])
def test_votes_that_were_under_way_are_void(transport):
    """Horovod was initialised anew in the middle of a backward pass: the step is that of a new backward pass."""
    net, optimizer = build(transport=transport, bucket_cap_mb=0.001)
    state = hvs.elastic.TorchState(model=net, optimizer=optimizer)
    train(net, optimizer, range(2))
    before = momenta(optimizer)
    tasks.backward(net, 2)
    state.on_reset()
    optimizer.zero_grad()  # nothing is being voted on any more
    for p, m in zip(net.parameters(), before, strict=True):
        optimizer.vote_state(p)["momentum_buffer"].copy_(torch.from_numpy(m))  # as a restored commit has it
    simulation = tasks.Simulation(tasks.values(net), SIZE, 0.01, 0.8, warmup=19)
    tasks.backward(net, 3)
    optimizer.step()
    simulation.step(tasks.gradients_of_all_ranks(net))
    tasks.assert_simulated(net, simulation)
