"""Trainings that go on from a checkpoint that one rank has, or that another optimizer has left."""

import copy
import warnings
import weakref

import horovod.torch as hvd
import numpy as np
import pytest
import torch
import torch_tasks as tasks
from horovod.torch import functions
from ranks import LAST, RANK, SIZE
from torch_tasks import train

import horovod_sign.torch as hvs

RANKS = (1, 2)  # alone, where nothing is sent; one rank that has a checkpoint and one that has none

OURS = ("SignSGD", "Signum")
KINDS = [*OURS, "AdamW", "SGD"]


def plain_optimizer(kind, parameters, lr=0.01, decay=0.1):
    if kind in OURS:
        return getattr(hvs, kind)(parameters, lr, weight_decay=decay)
    if kind == "SGD":
        return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr, weight_decay=decay)


def build(kind, **options):
    """A model, and an optimizer around which one's own momentum is voted on where it has none itself."""
    net = tasks.model()
    if kind == "SGD":
        options["compression"] = hvs.Compression.signum(0.5, warmup=True)
    return net, hvs.DistributedOptimizer(plain_optimizer(kind, net.parameters()), net.named_parameters(), **options)


def checkpoint_of(kind):
    """What a training of one rank by a plain optimizer leaves, on this rank's own data: model and optimizer."""
    net = tasks.model(seed=7)
    optimizer = plain_optimizer(kind, net.parameters(), lr=0.003)
    train(net, optimizer, range(3))
    return {"model": net.state_dict(), "optimizer": copy.deepcopy(optimizer.state_dict())}


def load(checkpoint, net, optimizer):
    net.load_state_dict(checkpoint["model"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another optimizer: that is said, and tested below
        optimizer.load_state_dict(copy.deepcopy(checkpoint["optimizer"]))  # torch takes tensors as they are


def broadcast(net, optimizer, root=0):
    """Horovod's documented way, which may move nothing: on the root, all is as before, and elsewhere as there."""
    before = hvd.broadcast_object(tasks.values(net), root)
    hvd.broadcast_parameters(net.state_dict(), root_rank=root)
    hvd.broadcast_optimizer_state(optimizer, root_rank=root)
    assert_equal(tasks.values(net), before)
    assert all(p.grad is None for p in net.parameters())


def assert_equal(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_same_state_on_all_ranks(optimizer):
    states = hvd.allgather_object(flat(optimizer.state_dict()), name="test.states")
    assert all(state == states[0] for state in states)


def flat(value):
    """Nested dicts and tensors as something that == compares, dtypes included."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.tolist()
    if isinstance(value, dict):
        return {key: flat(v) for key, v in value.items()}
    return [flat(v) for v in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.fault("resume-from-one")
@pytest.mark.quick
@pytest.mark.parametrize("saved", ["the same", "SGD", "Adam", "Signum"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_one_rank_loads(kind, saved):
    """All ranks then go on as if each had loaded it."""
    root, transport = (0, "auto") if saved == "SGD" else (LAST, "exchange")
    checkpoint = hvd.broadcast_object(checkpoint_of(kind if saved == "the same" else saved), root)
    net, optimizer = build(kind, transport=transport)
    if root == RANK:
        load(checkpoint, net, optimizer)
    broadcast(net, optimizer, root)
    assert_same_state_on_all_ranks(optimizer)
    expected, by_all = build(kind, transport=transport)
    load(checkpoint, expected, by_all)
    for model, each in ((net, optimizer), (expected, by_all)):
        train(model, each, range(3, 6))
        tasks.assert_replicas_identical(model)
    assert_equal(tasks.values(net), tasks.values(expected))


@pytest.mark.fault("resume-from-one")
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_other_ranks_had_gives_way(kind):
    """The root is new, and the others have trained or loaded something else."""
    net, optimizer = build(kind)
    if RANK != 0:
        load(checkpoint_of("SGD" if RANK == 1 else kind), net, optimizer)
    broadcast(net, optimizer)
    assert_same_state_on_all_ranks(optimizer)
    new, new_optimizer = build(kind)
    train(net, optimizer, range(3))
    train(new, new_optimizer, range(3))
    assert_equal(tasks.values(net), tasks.values(new))


@pytest.mark.fault("resume-from-one")
@pytest.mark.parametrize("kind", OURS)
def test_a_broadcast_before_the_optimizer_is_wrapped(kind):
    """As in Horovod's examples. Its way of making what is missing, by a step, would move what decays."""
    checkpoint = hvd.broadcast_object(checkpoint_of("SGD"), 0)
    for loads in (False, True):
        net = tasks.model()
        optimizer = plain_optimizer(kind, net.parameters())
        if loads and RANK == 0:
            load(checkpoint, net, optimizer)
        broadcast(net, optimizer)
        optimizer = hvs.DistributedOptimizer(optimizer, net.named_parameters())
        assert_same_state_on_all_ranks(optimizer)
        train(net, optimizer, range(3))
        tasks.assert_replicas_identical(net)
        assert optimizer.param_groups[0]["lr"] == (0.003 if loads else 0.01)


def test_state_of_every_dtype_is_broadcast():
    """Also of 16 bits, which Horovod itself cannot broadcast, in the layout of the parameter; and what is no tensor."""
    p = torch.nn.Parameter(torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16).to(memory_format=torch.channels_last))
    optimizer = hvs.DistributedOptimizer(torch.optim.SGD([p], torch.tensor(0.5), momentum=0.9))
    if RANK == LAST:
        optimizer.param_groups[0]["lr"] = torch.tensor(0.25)
        generator = torch.Generator().manual_seed(0)
        optimizer.state[p] = {
            "momentum_buffer": torch.randn(p.shape, generator=generator)
            .to(p.dtype)
            .to(memory_format=torch.channels_last),
            "mask": torch.tensor([True, False]),
            "half": torch.tensor(2.0, dtype=torch.float16),
            "row": torch.arange(6.0, dtype=torch.float64).view(2, 3).t(),
            "step": 5,
            "nothing": None,
            "history": [torch.ones(2), "words"],
        }
    hvd.broadcast_optimizer_state(optimizer, root_rank=LAST)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert optimizer.state[p]["step"] == 5
    assert optimizer.state[p]["momentum_buffer"].stride() == p.stride()
    assert_same_state_on_all_ranks(optimizer)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)  # a second one finds the same everywhere
    assert_same_state_on_all_ranks(optimizer)


@pytest.mark.fault("sixteen-bits")
@pytest.mark.parametrize("given", ["state dict", "named", "parameters"])
def test_parameters_of_every_dtype_are_broadcast(given, monkeypatch):
    names, start = [], functions.broadcast_async_

    def named(p, root, name):
        names.append(name)
        return start(p, root, name)

    monkeypatch.setattr(functions, "broadcast_async_", named)
    kinds = [torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.bool, torch.int16, torch.float8_e5m2]
    ones = torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)
    mine = {str(kind): (ones * (RANK + 1)).to(kind) for kind in kinds}
    mine["weight"] = torch.nn.Parameter(mine["torch.bfloat16"].clone(memory_format=torch.preserve_format))
    hvs.broadcast_parameters(
        {"state dict": mine, "named": list(mine.items()), "parameters": list(mine.values())}[given], root_rank=LAST
    )
    for name, value in mine.items():
        assert torch.equal(value.float(), (ones * (LAST + 1)).to(value.dtype).float()), name
    assert len(set(names)) == len(mine) and None not in names


@pytest.mark.ranks(2)
def test_momenta_of_one_parameter_at_a_time_are_gathered_on_a_device(monkeypatch):
    """Of a momentum that is on a device its copy on the host is another tensor, as here."""
    parameters = [torch.nn.Parameter(torch.ones(10)) for _ in range(3)]
    optimizer = hvs.DistributedOptimizer(hvs.Signum(parameters, 0.1))
    sum(p.sum() for p in parameters).backward()
    optimizer.step()
    on_device, alive, allgather = [], [], hvd.allgather

    def watched(tensor, **options):
        alive.append(sum(each() is not None for each in on_device))
        gathered = allgather(tensor, **options)
        on_device.append(weakref.ref(gathered))
        return gathered

    monkeypatch.setattr(hvd, "allgather", watched)
    monkeypatch.setattr(torch.Tensor, "cpu", torch.Tensor.clone)
    saved = hvs.gather_state_dict(optimizer)
    assert alive == [0, 0, 0]
    assert not any(each() is not None for each in on_device)
    assert (saved is None) == (RANK != 0)


@pytest.mark.skipif(SIZE == 1, reason="one rank agrees with itself")
def test_a_broadcast_among_different_models_is_an_error_on_all_ranks():
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(4), requires_grad=False)]
    optimizer = hvs.DistributedOptimizer(hvs.Signum(parameters[: 1 if RANK == LAST else 2], 0.1))
    with pytest.raises(ValueError, match=rf"parameter 1 is .* on ranks? 0.* and nothing more on rank {LAST}"):
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)


@pytest.mark.fault("other-optimizer")
@pytest.mark.parametrize("saved", [*KINDS, "Adam"])
@pytest.mark.parametrize("kind", [*KINDS, "plain Signum", "plain SignSGD"])
def test_a_checkpoint_of_another_optimizer(kind, saved):
    """What it does not have stays as it was, what is only there is not taken, and that is said."""
    net, wrapped, kind = tasks.model(), not kind.startswith("plain"), kind.removeprefix("plain ")
    optimizer = plain_optimizer(kind, net.parameters())
    if wrapped:
        optimizer = hvs.DistributedOptimizer(optimizer, net.named_parameters())
    checkpoint = hvd.broadcast_object(checkpoint_of(saved), 0)
    options = set(optimizer.param_groups[0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.load_state_dict(checkpoint["optimizer"])
    said = [str(w.message) for w in caught if "another optimizer" in str(w.message)]
    alike = kind == saved or (kind, saved) == ("AdamW", "Adam")
    assert len(said) == (0 if alike else 1), said
    assert options == set(optimizer.param_groups[0])
    assert optimizer.param_groups[0]["lr"] == 0.003
    if not alike:  # it starts with a state of its own
        held = [value for state in optimizer.state.values() for value in state.values()]
        assert not any(value.any() if isinstance(value, torch.Tensor) else value for value in held)
    train(net, optimizer, range(3))
    if wrapped:
        tasks.assert_replicas_identical(net)


@pytest.mark.parametrize("kind", [*KINDS, "plain Signum"])
def test_step_hooks_run_once_in_a_step_also_after_loading(kind):
    net, optimizer = build(kind) if not kind.startswith("plain") else (tasks.model(), None)
    optimizer = optimizer or hvs.Signum(net.parameters(), 0.01)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    for _ in range(2):
        train(net, optimizer, range(1))
        assert calls == ["pre", "post"]
        calls.clear()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
