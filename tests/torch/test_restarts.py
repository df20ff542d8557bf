"""Checkpoints under mpirun: one file for all ranks, loaded on as many ranks, or on others, or rank 0's alone."""

import io

import horovod.torch as hvd
import numpy as np
import pytest
import torch
import torch_tasks as tasks
from ranks import process_sets
from torch_tasks import momenta

import horovod_sign.torch as hvs

RANKS = (1, 3)  # alone; several, with momenta of their own


KINDS = ["Signum", "SGD", "Adam"]


def build(kind, dtype=torch.float32, **options):
    """A model and an optimizer with momenta to vote by; SGD also has a momentum of its own, of the same name.

    Warm-up takes C(0.8) = 19 steps, and so does not end before what is saved after 10.
    """
    net = tasks.model(dtype=dtype)
    if kind == "Signum":
        plain = hvs.Signum(net.parameters(), 0.01, warmup=True, momentum=0.8)
    else:
        options["compression"] = hvs.Compression.signum(0.8, warmup=True)
        adam = kind == "Adam"
        plain = torch.optim.Adam(net.parameters(), 0.01) if adam else torch.optim.SGD(net.parameters(), 0.1, 0.9)
    return net, hvs.DistributedOptimizer(plain, net.named_parameters(), **options)


def train(net, optimizer, steps):
    tasks.train(net, optimizer, steps, net[3].weight.dtype)


def through_a_file(value):
    """What torch.save and torch.load (with its safe default) make of it, on all ranks what rank 0 saved."""
    file = io.BytesIO()
    torch.save(value, file)
    return torch.load(io.BytesIO(hvd.broadcast_object(file.getvalue(), 0)))


@pytest.mark.fault("resume")
@pytest.mark.quick
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transport", ["auto", "exchange"])
def test_one_file_resumes_all_ranks_bit_exactly(kind, transport):
    net, optimizer = build(kind, transport=transport)
    train(net, optimizer, range(10))
    state = hvs.gather_state_dict(optimizer)
    assert (state is None) == (hvd.rank() != 0)
    saved = through_a_file({"model": net.state_dict(), "optimizer": state})
    resumed, resumed_optimizer = build(kind, transport=transport)
    resumed.load_state_dict(saved["model"])
    resumed_optimizer.load_state_dict(saved["optimizer"])
    tasks.assert_equal_on_all_ranks(momenta(resumed_optimizer), momenta(optimizer))
    train(resumed, resumed_optimizer, range(10, 24))
    train(net, optimizer, range(10, 24))
    tasks.assert_equal_on_all_ranks(tasks.values(resumed), tasks.values(net))
    tasks.assert_equal_on_all_ranks(momenta(resumed_optimizer), momenta(optimizer))
    tasks.assert_replicas_identical(resumed)


@pytest.mark.parametrize("transport", ["auto", "exchange"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_momenta_of_16_bit_models_are_float32_after_loading_too(kind, dtype, transport):
    """By either kind of checkpoint: the kernels read float32."""
    net, optimizer = build(kind, dtype, transport=transport)
    train(net, optimizer, range(3))
    for state in (through_a_file(hvs.gather_state_dict(optimizer)), optimizer.state_dict()):
        resumed, resumed_optimizer = build(kind, dtype, transport=transport)
        resumed.load_state_dict(net.state_dict())
        resumed_optimizer.load_state_dict(state)
        assert {m.dtype for m in momenta(resumed_optimizer)} == {np.dtype(np.float32)}
        train(resumed, resumed_optimizer, range(3, 6))
        whole, whole_optimizer = build(kind, dtype, transport=transport)
        train(whole, whole_optimizer, range(6))
        tasks.assert_equal_on_all_ranks(momenta(resumed_optimizer), momenta(whole_optimizer))
        tasks.assert_equal_on_all_ranks(tasks.values(resumed), tasks.values(whole))


@pytest.mark.fault("resume-on-others")
@pytest.mark.parametrize("kind", KINDS)
def test_on_another_number_of_ranks_all_start_from_the_mean(kind):
    """Saved by all ranks, loaded by process sets of one rank or two."""
    if hvd.size() == 1:
        pytest.skip("one rank has no other number of ranks")
    with process_sets(hvd, *[[rank] for rank in range(hvd.size())]) as sets:
        net, optimizer = build(kind)
        train(net, optimizer, range(5))
        saved = through_a_file(hvs.gather_state_dict(optimizer))
        mean = [np.mean(hvd.allgather_object(mine), axis=0) for mine in momenta(optimizer)]
        _, alone = build(kind, process_set=sets[hvd.rank()])
        alone.load_state_dict(saved)
        for got, expected in zip(momenta(alone), mean, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8)
        assert len({b"".join(m.tobytes() for m in each) for each in hvd.allgather_object(momenta(alone))}) == 1


@pytest.mark.fault("resume-from-one")
@pytest.mark.parametrize("kind", KINDS)
def test_what_rank_0_saved_alone_gives_all_its_momentum(kind):
    net, optimizer = build(kind)
    train(net, optimizer, range(5))
    saved = through_a_file(optimizer.state_dict())
    _, resumed = build(kind)
    resumed.load_state_dict(saved)
    tasks.assert_equal_on_all_ranks(momenta(resumed), hvd.broadcast_object(momenta(optimizer), 0))


def test_parameters_that_were_frozen_when_saved():
    """A checkpoint of some parameters' momenta loads where all have one; the others start at zero."""
    net = tasks.model()
    net[0].requires_grad_(False)
    optimizer = hvs.DistributedOptimizer(hvs.Signum(net.parameters(), 0.01), net.named_parameters())
    train(net, optimizer, range(3))
    saved = through_a_file(hvs.gather_state_dict(optimizer))
    net[0].requires_grad_(True)
    resumed = hvs.DistributedOptimizer(hvs.Signum(net.parameters(), 0.01), net.named_parameters())
    resumed.load_state_dict(saved)
    loaded, saved = (
        {p: state.get("momentum_buffer") for p, state in each.state.items()} for each in (resumed, optimizer)
    )
    tasks.assert_equal_on_all_ranks([loaded[p] for p in saved], list(saved.values()))
    train(net, resumed, range(3, 6))
    tasks.assert_replicas_identical(net)


def test_only_voting_optimizers_are_gathered():
    with pytest.raises(TypeError, match=r"made by hvs\.DistributedOptimizer"):
        hvs.gather_state_dict(torch.optim.SGD(tasks.model().parameters(), 0.1))
