"""Loss scaling as users write it: a rank that is always NaN, Horovod's recipe, a scaler made anew."""

import math
import warnings

import numpy as np
import pytest
import torch
import torch_tasks as tasks
from ranks import LAST, RANK
from torch.utils._python_dispatch import TorchDispatchMode

import horovod_sign.torch as hvs
from horovod_sign.torch.scaling import OVERFLOWS

RANKS = (3,)  # two that outvote one

pytestmark = pytest.mark.fault("overflow")


def make(kind, net, **options):
    if kind == "Adam":
        options["compression"] = hvs.Compression.signum(0.9)
    plain = {"SignSGD": hvs.SignSGD, "Signum": hvs.Signum, "Adam": torch.optim.Adam}[kind](net.parameters(), 0.01)
    return hvs.DistributedOptimizer(plain, net.named_parameters(), **options)


def assert_alike(left, right):
    for mine, expected in zip(left, right, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-8)


def plain_step(optimizer, net, scaler, step):
    optimizer.zero_grad()
    scaler.scale(tasks.loss(net, step)).backward()
    scaler.step(optimizer)
    scaler.update()


def unscaled_step(optimizer, net, scaler, step):
    optimizer.zero_grad()
    scaler.scale(tasks.loss(net, step)).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


def recipe_of_horovod(optimizer, net, scaler, step, clip=False):
    optimizer.zero_grad()
    scaler.scale(tasks.loss(net, step)).backward()
    optimizer.synchronize()
    scaler.unscale_(optimizer)
    assert all((p.grad.abs() <= 1).all() and (p.grad == p.grad.round()).all() for p in net.parameters())  # votes
    if clip:
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1e9)
    with optimizer.skip_synchronize():
        scaler.step(optimizer)
    scaler.update()


class Passes(TorchDispatchMode):
    """How often gradients are looked through for what is not finite, and the host waits for what was found."""

    NAMES = ("_amp_foreach_non_finite_check_and_unscale_", "_local_scalar_dense", "isfinite", "isnan")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in self.NAMES:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("step_by", [plain_step, unscaled_step])
@pytest.mark.parametrize("kind", ["SignSGD", "fused"])
def test_gradients_are_looked_through_once(kind, step_by):
    """By the scaler as it unscales them; the one flag that it raises is read once, and told to all."""
    net = tasks.model()
    plain = (
        torch.optim.Adam(net.parameters(), 0.01, fused=True) if kind == "fused" else hvs.SignSGD(net.parameters(), 0.01)
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = hvs.DistributedOptimizer(plain, net.named_parameters(), grad_scaler=scaler, check_replicas=0)
    for step in range(2):
        with Passes() as passes:
            step_by(optimizer, net, scaler, step)
    assert passes.seen == list(Passes.NAMES[:2])


@pytest.mark.parametrize(("kind", "abstain"), [("Signum", True), ("Adam", True), ("SignSGD", False)])
def test_a_rank_that_is_always_nan_is_outvoted(kind, abstain):
    """Its own scale falls, not that of the others, and it is told, not they."""
    net = tasks.model()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    optimizer = make(kind, net, grad_scaler=scaler, abstain=abstain, check_replicas=0)
    if RANK == LAST:
        net[3].weight.register_hook(lambda g: torch.full_like(g, math.nan))
    start = tasks.values(net)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for step in range(OVERFLOWS + 3):
            plain_step(optimizer, net, scaler, step)
    told = [str(each.message) for each in warned if issubclass(each.category, RuntimeWarning)]
    assert len(told) == (RANK == LAST) and all(text.startswith(f"rank {LAST}: its scaled") for text in told), told
    assert scaler.get_scale() == (2.0 ** (10 - OVERFLOWS - 3) if RANK == LAST else 2.0**10)
    assert any((left != right).any() for left, right in zip(start, tasks.values(net), strict=True))
    tasks.assert_replicas_identical(net)


@pytest.mark.quick
@pytest.mark.parametrize("kind", ["SignSGD", "Signum", "Adam"])
@pytest.mark.parametrize("clip", [False, True])
def test_the_recipe_of_horovod(kind, clip):
    nets = [tasks.model(), tasks.model()]
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10) for _ in nets]
    optimizers = [make(kind, net, grad_scaler=scaler) for net, scaler in zip(nets, scalers, strict=True)]
    for step in range(3):
        recipe_of_horovod(optimizers[0], nets[0], scalers[0], step, clip)
        plain_step(optimizers[1], nets[1], scalers[1], step)
    assert_alike(*map(tasks.values, nets))
    assert_alike(*map(tasks.momenta, optimizers))
    tasks.assert_replicas_identical(nets[0])
    scalers[0].scale(tasks.loss(nets[0], 3)).backward()
    scalers[0].unscale_(optimizers[0])
    with pytest.raises(RuntimeError, match="already been called"):  # torch's own
        scalers[0].unscale_(optimizers[0])


def test_the_recipe_with_two_optimizers_and_one_scaler():
    nets = [tasks.model(seed) for seed in (1, 2)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizers = [make("Signum", net, grad_scaler=scaler) for net in nets]
    for step in range(2):
        for optimizer, net in zip(optimizers, nets, strict=True):
            optimizer.zero_grad()
            scaler.scale(tasks.loss(net, step)).backward()
        for optimizer in optimizers:
            optimizer.synchronize()
        for optimizer in reversed(optimizers):
            scaler.unscale_(optimizer)
        for optimizer, net in zip(optimizers, nets, strict=True):
            assert all((p.grad == p.grad.round()).all() for p in net.parameters())
            with optimizer.skip_synchronize():
                scaler.step(optimizer)
        scaler.update()
    assert "unscale_" not in vars(scaler)
    for net in nets:
        tasks.assert_replicas_identical(net)


@pytest.mark.parametrize("step_by", [plain_step, unscaled_step])
@pytest.mark.parametrize("kind", ["Signum", "Adam"])
def test_a_scaler_made_anew_after_wrapping_takes_the_place_of_the_old(kind, step_by):
    nets = [tasks.model(), tasks.model()]
    scaled = make(kind, nets[0], grad_scaler=torch.amp.GradScaler("cpu", init_scale=2.0**16))
    plain = make(kind, nets[1], overlap=False)
    step = 0
    for epoch in range(2):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** (6 + epoch))
        for _ in range(2):
            step_by(scaled, nets[0], scaler, step)
            plain.zero_grad()
            tasks.backward(nets[1], step)
            plain.step()
            step += 1
    assert_alike(*map(tasks.values, nets))
    assert_alike(*map(tasks.momenta, [scaled, plain]))
    tasks.assert_replicas_identical(nets[0])


def test_a_scaler_made_anew_in_the_recipe_of_horovod_is_one_sentence():
    """synchronize() cannot know of it."""
    net = tasks.model()
    old = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = make("Signum", net, grad_scaler=old)
    recipe_of_horovod(optimizer, net, old, 0)
    new = torch.amp.GradScaler("cpu", init_scale=2.0**5)
    new.scale(tasks.loss(net, 1)).backward()
    optimizer.synchronize()
    with optimizer.skip_synchronize(), pytest.raises(RuntimeError, match=r"another GradScaler.*keep it"):
        new.step(optimizer)
