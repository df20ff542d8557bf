"""When votes start, on which gradients, and under which names: by Horovod's engine, on real ranks."""

import inspect
import warnings

import horovod.torch as hvd
import numpy as np
import pytest
import torch
import torch_tasks as tasks
from ranks import LAST

import horovod_sign.torch as hvs

RANKS = (2,)  # the fewest that send anything

REQUESTS = {"exchange": "alltoall_async", "counts": "allreduce_async_"}  # what a vote begins with


def wrap(optimizer, net, **options):
    return hvs.DistributedOptimizer(optimizer, named_parameters=net.named_parameters(), **options)


def said(function, *words) -> list[str]:
    """The warnings of a call that have one of these words."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        function()
    return [str(each.message) for each in warned if any(word in str(each.message) for word in words)]


@pytest.fixture(params=REQUESTS)
def transport(request):
    return request.param


@pytest.fixture
def started(transport, monkeypatch):
    """The votes that have begun, by the names of their first requests."""
    call, names = getattr(hvd, REQUESTS[transport]), []

    def note(*args, **kwargs):
        name = kwargs["name"] if "name" in kwargs else args[2]
        if ".bucket" in name:  # a vote, and not what else ranks tell each other
            names.append(name)
        return call(*args, **kwargs)

    monkeypatch.setattr(hvd, REQUESTS[transport], note)
    return names


@pytest.mark.quick
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("overlap", [True, False])
def test_votes_start_during_the_last_backward_of_a_step(started, transport, overlap, passes):
    """That of the last layers when the first ones have no gradient yet; none before `step` with overlap=False."""
    net, within = tasks.model(), []
    optimizer = wrap(
        hvs.SignSGD(net.parameters(), 0.01), net, transport=transport, bucket_cap_mb=0.0005, overlap=overlap,
        backward_passes_per_step=passes,
    )  # fmt: skip
    net[0].weight.register_hook(lambda g: within.append(len(started)))
    for step in range(2):
        for part in range(passes):
            started.clear(), within.clear()
            tasks.backward(net, passes * step + part)
            full = overlap and part == passes - 1
            assert (within[0] >= 1) == full
            assert len(started) == (3 if full else 0)  # three buckets
        optimizer.step()
        assert len(started) == len(set(started)) == 3
        optimizer.zero_grad()
    tasks.assert_replicas_identical(net)


def test_a_bucket_that_lacks_a_gradient_waits_for_the_step(started, transport):
    p, q = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(3))
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD([p, q], 1.0), transport=transport)
    p.sum().backward()
    assert started == []
    optimizer.step()
    assert len(started) == 1
    assert (p.tolist(), q.tolist()) == ([-1.0] * 3, [0.0] * 3)


@pytest.mark.parametrize(("bucket_cap_mb", "votes"), [(0.008, 1), (0.0079, 2), (1e-9, 2)])
def test_a_bucket_is_so_many_megabytes(started, transport, bucket_cap_mb, votes):
    parameters = [torch.nn.Parameter(torch.zeros(1000)) for _ in range(2)]
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD(parameters, 1.0), transport=transport, bucket_cap_mb=bucket_cap_mb)
    sum(p.sum() for p in parameters).backward()
    assert len(started) == votes
    optimizer.step()


def test_parameters_that_are_added_have_votes_of_their_own_names(started, transport):
    """Names in flight twice are an error of Horovod's."""
    net = tasks.model()
    first, second, third = list(net.parameters())[:4], list(net.parameters())[4:6], list(net.parameters())[6:]
    optimizer = wrap(hvs.Signum(first, 0.01), net, transport=transport)
    simulations = [(first, tasks.Simulation([p.detach().numpy() for p in first], hvd.size(), 0.01, 0.9))]
    for step in range(6):
        if step in (2, 4):
            added = second if step == 2 else third
            optimizer.zero_grad()  # a group's gradients of before are not in the first vote
            optimizer.add_param_group({"params": added})
            simulations.append((added, tasks.Simulation([p.detach().numpy() for p in added], hvd.size(), 0.01, 0.9)))
        started.clear()
        net.zero_grad()
        tasks.backward(net, step)
        everyone = tasks.gradients_of_all_ranks(net)
        optimizer.step()
        assert len(started) == len(set(started)) == len(simulations)
        index = {p: i for i, p in enumerate(net.parameters())}
        for parameters, simulation in simulations:
            simulation.step([[of_rank[index[p]] for p in parameters] for of_rank in everyone])
    for parameters, simulation in simulations:
        for p, simulated in zip(parameters, simulation.x, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), simulated, rtol=1e-5, atol=1e-6)
    tasks.assert_replicas_identical(net)


def double_in_place(p):
    p.grad.mul_(2)


def replace(p):
    p.grad = p.grad * 2


def drop(p):
    p.grad = None


def double_by_numpy(p):
    p.grad.numpy()[...] *= 2


def write_nothing(p):
    torch.nn.utils.clip_grad_norm_([p], torch.inf)


def leave(p):
    pass


EDITS = {double_in_place: 1, replace: 1, drop: 1, double_by_numpy: 1, write_nothing: 0, leave: 0}


def edits_told(edit, transport, overlap, steps, edited) -> list[str]:
    net = tasks.model()
    optimizer = wrap(hvs.Signum(net.parameters(), 0.01), net, transport=transport, overlap=overlap)

    def train():
        for step in range(steps):
            optimizer.zero_grad()
            tasks.backward(net, step)
            if hvd.rank() == LAST and step in edited:
                edit(net[3].weight)
            optimizer.step()

    messages = said(train, "overlap=False")
    tasks.assert_replicas_identical(net)
    return messages


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_gradients_that_change_after_they_were_packed(edit, transport):
    """The user is told, once, on the ranks that do it; with overlap=False the change counts, and nobody is told."""
    for overlap in (True, False):
        messages = edits_told(edit, transport, overlap, 3, range(3))
        assert len(messages) == (EDITS[edit] if overlap and hvd.rank() == LAST else 0)


@pytest.mark.parametrize(("edit", "step"), [(double_in_place, 6), (replace, 6), (double_by_numpy, 8)])
def test_gradients_that_change_in_a_later_step(edit, step, transport):
    """What torch does is seen at once, what it does not know of in the steps in which the gradients are compared."""
    messages = edits_told(edit, transport, True, step + 1, {step})
    assert len(messages) == (hvd.rank() == LAST)


def test_how_many_passes_make_a_step_can_change_between_steps(transport):
    net = tasks.model()
    optimizer = wrap(hvs.Signum(net.parameters(), 0.01), net, transport=transport)
    simulation = tasks.Simulation(tasks.values(net), hvd.size(), 0.01, 0.9)
    for step, passes in enumerate([1, 2, 2, 3, 1, 1]):
        optimizer.zero_grad()
        optimizer.set_backward_passes_per_step(passes)
        for part in range(passes):
            tasks.backward(net, 10 * step + part)
        optimizer.step()
        simulation.step(tasks.gradients_of_all_ranks(net))
    tasks.assert_simulated(net, simulation)


def test_more_passes_than_a_step_has_are_refused(transport):
    net = tasks.model()
    optimizer = wrap(hvs.SignSGD(net.parameters(), 0.01), net, transport=transport, backward_passes_per_step=2)
    for part in range(2):
        tasks.backward(net, part)
    with pytest.raises(AssertionError, match="more than backward_passes_per_step=2 times"):
        tasks.backward(net, 2)
    optimizer.step()
    tasks.assert_replicas_identical(net)


def test_passes_that_are_dropped_do_not_count(transport):
    net = tasks.model()
    optimizer = wrap(hvs.SignSGD(net.parameters(), 0.01), net, transport=transport, backward_passes_per_step=2)
    tasks.backward(net, 0)
    optimizer.zero_grad()
    for part in range(2):
        tasks.backward(net, part)
    optimizer.step()
    tasks.assert_replicas_identical(net)


def test_bytes_and_statistics_are_those_of_one_step(transport):
    p = torch.nn.Parameter(torch.zeros(1280))
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD([p], 0.01), transport=transport)
    sent = []
    for step in range(3):
        optimizer.zero_grad()
        p.sum().backward()
        optimizer.step()
        sent.append(optimizer.bytes_sent)
        assert optimizer.vote_statistics().step == step + 1
        assert optimizer.vote_statistics().bytes_sent == optimizer.bytes_sent
    # One plane of 160 bytes, half of it in each phase, and a byte a message; or fields of 4 bits and one of the voters.
    assert sent == [{"exchange": 2 * (80 + 1), "counts": 1280 // 2 + 8}[transport]] * 3


def test_step_after_synchronize_votes_again_and_says_so(transport):
    net = tasks.model()
    optimizer = wrap(torch.optim.SGD(net.parameters(), 0.01), net, transport=transport)
    tasks.backward(net, 0)
    optimizer.synchronize()
    assert len(said(optimizer.step, "without optimizer.skip_synchronize()")) == 1
    optimizer.zero_grad()
    tasks.backward(net, 1)
    assert said(optimizer.step, "skip_synchronize") == []
    tasks.assert_replicas_identical(net)


def test_what_a_step_and_a_closure_return(transport):
    """The loss, computed with gradients on, of the parameters before the step: what torch's optimizers do."""
    p = torch.nn.Parameter(torch.full((3,), 2.0))
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD([p], 0.5), transport=transport)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert [optimizer.step(closure).item() for _ in range(3)] == [12.0, 6.75, 3.0]
    assert p.tolist() == [0.5] * 3
    optimizer.zero_grad()
    assert optimizer.step() is None


def test_defaults_are_what_the_documentation_says():
    names = inspect.signature(hvs.DistributedOptimizer).parameters
    defaults = {name: each.default for name, each in names.items() if each.default is not inspect.Parameter.empty}
    expected = {
        "named_parameters": None,
        "compression": None,
        "backward_passes_per_step": 1,
        "process_set": hvd.global_process_set,
        "abstain": True,
        "transport": "auto",
        "bucket_cap_mb": 64.0,
        "overlap": True,
        "grad_scaler": None,
        "sparse_as_dense": True,
        "hierarchical": False,
    }
    assert expected.items() <= defaults.items()
    assert list(names)[: len(expected) + 1] == ["optimizer", *expected]
