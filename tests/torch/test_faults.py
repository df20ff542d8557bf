"""Faults of one rank under mpirun: overflows, NaN, hostile workers, joined ranks. The others go on, all alike."""

import copy
import math
import warnings

import horovod.torch as hvd
import numpy as np
import oracle
import pytest
import torch
import torch_tasks as tasks
from mpi4py import MPI
from ranks import LAST, SIZE
from torch_tasks import momenta

import horovod_sign.torch as hvs

RANKS = (1, 3)  # alone; a majority that outvotes one; larger ones: core/test_properties.py, core/test_reproduce.py


needs_two = pytest.mark.skipif(SIZE == 1, reason="one rank has no others")


def wrap(optimizer, net, **options):
    return hvs.DistributedOptimizer(optimizer, named_parameters=net.named_parameters(), **options)


def make(kind, net):
    """Signum itself, or Adam around votes by momentum."""
    if kind == "Signum":
        return hvs.Signum(net.parameters(), 0.01, weight_decay=0.1), {}
    return torch.optim.Adam(net.parameters(), 0.01), {"compression": hvs.Compression.signum(0.9)}


def scaled_step(optimizer, net, scaler, step, how="scaler.step", overflow=False):
    """One step on a scaled loss; `overflow`: with an infinite gradient on this rank."""
    optimizer.zero_grad()
    handles = [net[3].bias.register_hook(lambda g: torch.full_like(g, math.inf))] if overflow else []
    scaler.scale(tasks.loss(net, step)).backward()
    for handle in handles:
        handle.remove()
    if how == "clip":
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    if how == "synchronize":
        optimizer.synchronize()
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
    else:
        scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale()


@pytest.mark.fault("overflow")
@pytest.mark.parametrize("how", ["scaler.step", "clip", "synchronize"])
@pytest.mark.parametrize("kind", ["Signum", "Adam"])
def test_a_rank_that_overflows_abstains_in_that_step(kind, how):
    """No deadlock, the same weights and scales everywhere, momenta of unscaled gradients; as without that rank."""
    nets = [tasks.model(), tasks.model()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    plain, options = make(kind, nets[0])
    optimizer = wrap(plain, nets[0], grad_scaler=scaler, **options)
    # The same without a scaler, where the overflowing rank has no gradients in that step.
    plain, options = make(kind, nets[1])
    reference = wrap(plain, nets[1], overlap=False, **options)
    for step in range(8):
        everyone = step == 6
        overflow = everyone or (step in (2, 3) and hvd.rank() == LAST)
        before, kept = tasks.values(nets[0]), momenta(optimizer)
        scale = scaled_step(optimizer, nets[0], scaler, step, how, overflow)
        scales = MPI.COMM_WORLD.allgather(scale)
        assert len(set(scales[:-1])) <= 1 and scales[-1] <= scales[0]  # only who overflows lowers its own
        if overflow:
            assert all((left == right).all() for left, right in zip(kept, momenta(optimizer), strict=True))
        if everyone or (hvd.size() == 1 and overflow):
            assert all((left == right).all() for left, right in zip(before, tasks.values(nets[0]), strict=True))
            continue
        reference.zero_grad()
        tasks.loss(nets[1], step).backward()
        if how == "clip":
            torch.nn.utils.clip_grad_norm_(nets[1].parameters(), 1.0)
        if overflow:
            reference.zero_grad()
        reference.step()
        tasks.assert_replicas_identical(nets[0])
        for left, right in zip(*map(tasks.values, nets), strict=True):
            np.testing.assert_array_equal(left, right)
    # The scale is a power of two, so unscaling is exact.
    for left, right in zip(momenta(optimizer), momenta(reference), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-9)
    assert scale < 2.0**10 or hvd.rank() != LAST


@pytest.mark.fault("overflow")
@pytest.mark.ranks(2, 3)  # even, where one more +1 would decide; odd
@needs_two
@pytest.mark.parametrize("transport", ["auto", "exchange", "counts"])
def test_a_rank_that_overflows_abstains_from_one_bit_votes_too(transport):
    """With abstain=False zeros count as +1; a rank that overflows does not, and the others decide."""
    net = tasks.model()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plain = hvs.SignSGD(net.parameters(), 0.01)
    optimizer = wrap(plain, net, grad_scaler=scaler, abstain=False, transport=transport)
    simulation = tasks.Simulation(tasks.values(net), hvd.size() - 1, 0.01, abstain=False)
    for step in range(3):
        scaled_step(optimizer, net, scaler, step, overflow=hvd.rank() == LAST)
        simulation.step(tasks.gradients_of_all_ranks(net)[:-1])
    tasks.assert_simulated(net, simulation)


@pytest.mark.fault("overflow")
def test_float16_autocast_equals_the_simulation():
    net = tasks.model()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)  # overflows at first
    optimizer = wrap(hvs.Signum(net.parameters(), 0.01, momentum=0.5), net, grad_scaler=scaler)
    simulation = tasks.Simulation(tasks.values(net), hvd.size(), 0.01, 0.5)
    for step in range(20):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = tasks.loss(net, step)
        scaler.scale(loss).backward()
        everyone = MPI.COMM_WORLD.allgather([(p.grad / scaler.get_scale()).numpy() for p in net.parameters()])
        voters = [of_rank if all(np.isfinite(g).all() for g in of_rank) else None for of_rank in everyone]
        scaler.step(optimizer)
        scaler.update()
        if any(voters):
            simulation.step([[None] * len(everyone[0]) if of_rank is None else of_rank for of_rank in voters])
        tasks.assert_simulated(net, simulation)
    assert 1.0 < scaler.get_scale() < 2.0**24


@pytest.mark.fault("scaler-outside")
def test_a_scaler_that_is_not_named_is_refused():
    net = tasks.model()
    scaler = torch.amp.GradScaler("cpu")
    optimizer = wrap(hvs.SignSGD(net.parameters(), 0.01), net)
    scaler.scale(tasks.loss(net, 0)).backward()
    with pytest.raises(RuntimeError, match="grad_scaler=scaler"):
        scaler.step(optimizer)
    optimizer.step()  # ends the votes that are on their way
    optimizer = wrap(hvs.SignSGD(net.parameters(), 0.01), net, grad_scaler=scaler)
    scaler.scale(tasks.loss(net, 0)).backward()
    with pytest.raises(RuntimeError, match=r"call scaler\.step\(optimizer\)"):
        optimizer.step()


def test_a_disabled_scaler_changes_nothing():
    nets = [tasks.model(), tasks.model()]
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    scaled = wrap(hvs.Signum(nets[0].parameters(), 0.01), nets[0], grad_scaler=scaler)
    plain = wrap(hvs.Signum(nets[1].parameters(), 0.01), nets[1])
    for step in range(3):
        for optimizer, net in ((scaled, nets[0]), (plain, nets[1])):
            optimizer.zero_grad()
            scaler.scale(tasks.loss(net, step)).backward()
            scaler.step(optimizer)
            scaler.update()
    for left, right in zip(*map(tasks.values, nets), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.fault("nan")
@pytest.mark.quick
@pytest.mark.parametrize("transport", ["exchange", "counts"])
@pytest.mark.parametrize("kind", ["SignSGD", "Signum"])
def test_nan_and_inf_gradients_of_one_rank(kind, transport):
    """NaN abstains, an infinity has its sign; the user is told once, on that rank, with the parameter's name."""
    net = tasks.model()
    momentum = None if kind == "SignSGD" else 0.9
    plain = hvs.SignSGD(net.parameters(), 0.01) if momentum is None else hvs.Signum(net.parameters(), 0.01, momentum)
    optimizer = wrap(plain, net, transport=transport)
    simulation = tasks.Simulation(tasks.values(net), hvd.size(), 0.01, momentum)
    broken = hvd.rank() == LAST

    def spoil(g):
        g = g.clone()
        g.view(-1)[:3] = torch.tensor([math.nan, math.inf, -math.inf])
        return g

    if broken:
        net[3].weight.register_hook(spoil)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for step in range(10):
            optimizer.zero_grad()
            tasks.backward(net, step)
            optimizer.step()
            simulation.step(tasks.gradients_of_all_ranks(net))
            assert optimizer.vote_statistics().nans == broken
    messages = [str(each.message) for each in warned if "NaN" in str(each.message)]
    assert len(messages) == broken
    assert all(f"rank {LAST}: the gradient of parameter 3.weight is NaN in 1 of 756" in text for text in messages)
    assert optimizer.vote_statistics().total_nans == 10 * broken
    tasks.assert_simulated(net, simulation)
    assert all(torch.isfinite(m).all() for state in optimizer.state.values() for m in state.values())


@pytest.mark.fault("unseen")
def test_what_never_sees_a_gradient_does_not_move():
    """Rows of an embedding that no rank reads, and a unit that never fires."""
    torch.manual_seed(0)
    embedding, hidden, output = torch.nn.Embedding(50, 4), torch.nn.Linear(4, 6), torch.nn.Linear(6, 2)
    net = torch.nn.Sequential(embedding, hidden, torch.nn.ReLU(), output)
    with torch.no_grad():
        hidden.bias[2] = -100.0
    optimizer = wrap(hvs.Signum(net.parameters(), 0.01), net)
    before = [copy.deepcopy(p.detach()) for p in net.parameters()]
    seen = set()
    for step in range(10):
        rows = [7 * rank + step for rank in range(hvd.size())]
        seen.update(rows)
        optimizer.zero_grad()
        net(torch.tensor([rows[hvd.rank()]])).square().sum().backward()
        optimizer.step()
    after = list(net.parameters())
    unseen = [row for row in range(50) if row not in seen]
    assert torch.equal(after[0][unseen], before[0][unseen])
    assert (after[0][sorted(seen)] != before[0][sorted(seen)]).any(1).float().mean() > 0.9  # some come back
    assert torch.equal(after[1][2], before[1][2])
    assert torch.equal(after[2][2], before[2][2])
    assert torch.equal(after[3][:, 2], before[3][:, 2])
    tasks.assert_replicas_identical(net)


@pytest.mark.fault("hostile")
@pytest.mark.parametrize("kind", sorted(hvs.adversaries.KINDS))
@pytest.mark.parametrize("method", ["SignSGD", "Signum"])
def test_just_under_half_of_the_ranks_are_hostile(method, kind):
    """A linear regression is learnt all the same."""
    hostile = (hvd.size() - 1) // 2
    truth = torch.randn(20, generator=torch.Generator().manual_seed(7))
    net = torch.nn.Linear(20, 1, bias=False)
    torch.nn.init.zeros_(net.weight)
    if hvd.rank() >= hvd.size() - hostile:
        hvs.adversaries.corrupt(net.parameters(), kind, seed=hvd.rank())
    optimizer = wrap(getattr(hvs, method)(net.parameters(), 0.05), net)
    generator = torch.Generator().manual_seed(hvd.rank())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for step in range(120):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 120)  # signs do not shrink near the optimum
            x = torch.randn(64, 20, generator=generator)
            optimizer.zero_grad()
            honest = 2 / 64 * x.T @ (x @ net.weight[0].detach() - x @ truth)
            (net(x)[:, 0] - x @ truth).square().mean().backward()
            mine = net.weight.grad[0].clone()
            optimizer.step()
            assert torch.allclose(mine, honest, rtol=1e-3, atol=1e-4) == (hvd.rank() < hvd.size() - hostile)
    tasks.assert_replicas_identical(net)
    assert (net.weight[0] - truth).norm() < 0.1 * truth.norm()


def test_unknown_adversaries_are_refused():
    with pytest.raises(ValueError, match="kind must be one of"):
        hvs.adversaries.corrupt([], "evil")


@pytest.mark.fault("join")
def test_joined_ranks_abstain_with_counts():
    """Uneven data: rank r has r + 1 steps and then joins, so in the end the last rank votes alone."""
    p = torch.nn.Parameter(torch.zeros(100))
    optimizer = hvs.DistributedOptimizer(torch.optim.SGD([p], 1.0), transport="counts")
    x = [torch.from_numpy(oracle.gradients(rank, 100, np.float32)) for rank in range(hvd.size())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for step in range(1 + hvd.rank()):
            optimizer.zero_grad()
            p.grad = x[hvd.rank()].clone()
            optimizer.step()
            expected = oracle.vote([each.numpy() for each in x[step:]])
            np.testing.assert_array_equal(p.grad.numpy(), expected)
    hvd.join()


@pytest.mark.fault("join-exchange")
@needs_two
def test_joined_ranks_and_the_exchange_are_one_clear_sentence():
    p = torch.nn.Parameter(torch.zeros(1000))
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD([p], 1.0), transport="exchange")
    if hvd.rank() > 0:
        with pytest.raises(RuntimeError, match=r'called hvd\.join\(\).*transport="counts"'):
            (p.sum() * 1.0).backward()
            optimizer.step()
    hvd.join()
