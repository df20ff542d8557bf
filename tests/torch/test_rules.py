"""Rules of a user's own: voted on, saved, shared and told of when they are wrong, as the package's own are."""

import copy
import io
import math
from pathlib import Path

import horovod.torch as hvd
import numpy as np
import pytest
import simulation
import torch
import torch_tasks as tasks
from kernel_sets import use_kernels
from mpi4py import MPI
from ranks import LAST, RANK, SIZE, process_sets
from torch_rules import RULES, Muon, TwoMomenta

import horovod_sign.torch as hvs

RANKS = (3,)  # a majority, and momenta that have a mean


def build(rule, around="itself", **options):
    """A model and an optimizer that steps by votes on what the rule says."""
    net = tasks.model()
    if around == "itself":
        plain = hvs.SignOptimizer(net.parameters(), 0.01, rule=rule)
    else:
        plain, options["compression"] = torch.optim.SGD(net.parameters(), 0.01), hvs.Compression.of(rule)
    return net, hvs.DistributedOptimizer(plain, net.named_parameters(), **options)


def states(optimizer) -> list[np.ndarray]:
    """Copies of all that this rank votes by."""
    of_all = [optimizer.vote_state(p) for group in optimizer.param_groups for p in group["params"]]
    return [np.array(value) for state in of_all for name, value in sorted(state.items()) if name != "step"]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Muon", {"transport": "exchange", "bucket_cap_mb": 0.001}),
        ("Muon", {"kernels": "operations", "abstain": False}),
        ("TwoMomenta", {"around": "SGD", "transport": "counts"}),
        ("TwoMomenta", {"abstain": False, "overlap": False}),
        ("Clipped", {"kernels": "operations"}),
        ("Clipped", {"around": "SGD"}),
    ],
    ids=str,
)
def test_training_equals_the_simulation(name, options, monkeypatch):
    """Also where one rank has a gradient that is not finite in places."""
    (rule, expected), options = RULES[name], dict(options)
    use_kernels(monkeypatch, options.pop("kernels", "native"))
    net, optimizer = build(rule, **options)
    simulated = simulation.Simulation(tasks.values(net), SIZE, 0.01, expected, abstain=options.get("abstain", True))
    for step in range(6):
        optimizer.zero_grad()
        handle = net[3].weight.register_hook(spoil) if RANK == LAST and step == 3 else None
        tasks.backward(net, step)
        if handle is not None:
            handle.remove()
        gradients = tasks.gradients_of_all_ranks(net)
        optimizer.step()
        simulated.step(gradients)
    tasks.assert_simulated(net, simulated)
    mine = [np.array(optimizer.vote_state(p)[each]) for p in net.parameters() for each in rule.states]
    for got, each in zip(mine, [each for of in simulated.workers.states[RANK] for each in of], strict=True):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, each, rtol=1e-5, atol=1e-7)


def spoil(g):
    g = g.clone()
    g[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    return g


@pytest.mark.parametrize("around", ["itself", "SGD"])
@pytest.mark.parametrize("name", ["Muon", "TwoMomenta"])
def test_one_file_resumes_all_ranks_bit_exactly(name, around):
    net, optimizer = build(RULES[name][0], around)
    tasks.train(net, optimizer, range(4))
    saved, file = hvs.gather_state_dict(optimizer), io.BytesIO()
    torch.save({"model": net.state_dict(), "optimizer": saved}, file)
    saved = torch.load(io.BytesIO(hvd.broadcast_object(file.getvalue(), 0)))  # weights_only, as by default
    resumed, resumed_optimizer = build(RULES[name][0], around)
    resumed.load_state_dict(saved["model"])
    resumed_optimizer.load_state_dict(saved["optimizer"])
    tasks.assert_equal_on_all_ranks(states(resumed_optimizer), states(optimizer))
    for each, its in ((net, optimizer), (resumed, resumed_optimizer)):
        tasks.train(each, its, range(4, 8))
    tasks.assert_equal_on_all_ranks(tasks.values(resumed), tasks.values(net))
    tasks.assert_equal_on_all_ranks(states(resumed_optimizer), states(optimizer))


def test_among_others_all_start_from_the_mean():
    net, optimizer = build(TwoMomenta())
    tasks.train(net, optimizer, range(3))
    saved = hvd.broadcast_object(hvs.gather_state_dict(optimizer), 0, name="test.saved")
    everyone = MPI.COMM_WORLD.allgather(states(optimizer))
    with process_sets(hvd, [0, LAST]) as (pair,):
        if RANK in (0, LAST):
            _, of_two = build(TwoMomenta(), process_set=pair)
            of_two.load_state_dict(saved)
            for got, *each in zip(states(of_two), *everyone, strict=True):
                np.testing.assert_allclose(got, np.mean(each, axis=0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("around", ["itself", "SGD"])
def test_who_joins_gets_the_mean_of_all_states(around, monkeypatch):
    monkeypatch.setenv("HOROVOD_ELASTIC", "1")
    net, optimizer = build(TwoMomenta(), around)
    state = hvs.elastic.TorchState(model=net, optimizer=optimizer)
    tasks.train(net, optimizer, range(3))
    mine = states(optimizer)
    everyone = MPI.COMM_WORLD.allgather(mine)
    if RANK == LAST:
        net, optimizer = build(TwoMomenta(), around)
        state = hvs.elastic.TorchState(model=net, optimizer=optimizer)
    else:
        state.on_reset()
    state.sync()
    expected = [np.mean(each, axis=0) for each in zip(*everyone[:LAST], strict=True)] if RANK == LAST else mine
    for got, each in zip(states(optimizer), expected, strict=True):
        np.testing.assert_allclose(got, each, rtol=1e-5, atol=1e-7)
    tasks.train(net, optimizer, range(3, 5))
    tasks.assert_replicas_identical(net)


class Wrong(hvs.Rule):
    """Right, but on the last rank, from its second step on."""

    states = ("count",)

    def __init__(self, how):
        self.how = how

    def ballot(self, gradient, count):
        if RANK == LAST and count.max() > 0:
            return {
                "raises": lambda: [][1],
                "shape": lambda: (gradient.flatten()[:1], count),
                "dtype": lambda: (gradient > 0, count),
                "states": lambda: gradient,
                "no tensor": lambda: (gradient.tolist(), count),
            }[self.how]()
        return gradient, count + 1


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raises", "ballot raised IndexError: list index out of range"),
        ("shape", r"of the shape of the gradient, .*, but v is float32 of shape \(1,\)"),
        ("dtype", "must return tensors of floating point .* but v is bool"),
        ("states", r"must return \(v, new count\), but returned 1 of 2 values"),
        ("no tensor", r"must return \(v, new count\), tensors, but one is a list"),
    ],
)
def test_a_rule_that_is_wrong_on_one_rank_is_an_error_on_all(how, words):
    net, optimizer = build(Wrong(how), overlap=how != "raises")
    tasks.train(net, optimizer, range(1))
    kept = states(optimizer)
    optimizer.zero_grad()
    tasks.backward(net, 1)
    with pytest.raises(RuntimeError if RANK == LAST else ValueError, match=words):
        optimizer.step()
    tasks.assert_replicas_identical(net)
    if RANK == LAST:
        assert all(map(np.array_equal, states(optimizer), kept))


def test_ranks_that_have_other_rules_are_told():
    rule = TwoMomenta(slow=0.75) if RANK == LAST else TwoMomenta()
    with pytest.raises(
        ValueError, match=r"slow=0.875\) of fast, slow on ranks 0, 1 and .*slow=0.75\) of fast, slow on rank 2"
    ):
        build(rule)


def test_a_rule_of_a_copied_optimizer_is_the_same():
    p = torch.nn.Parameter(torch.eye(3))
    optimizer = hvs.SignOptimizer([p], 0.5, rule=Muon(), weight_decay=0.25)
    p.grad = torch.ones(3, 3)
    optimizer.step()
    twin = copy.deepcopy(optimizer)
    (q,) = twin.param_groups[0]["params"]
    assert twin.rule(twin.param_groups[0]) == Muon() == optimizer.rule(optimizer.param_groups[0])
    for each, its in ((p, optimizer), (q, twin)):
        each.grad = torch.arange(9.0).view(3, 3)
        its.step()
    assert torch.equal(p, q)
    assert torch.equal(optimizer.state[p]["momentum"], twin.state[q]["momentum"])


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("kind", ["Signum", "SGD"])
def test_a_checkpoint_of_the_first_version_loads(kind):
    """Saved on two ranks by the code before rules had states of other names: each has its own again, or the mean."""
    saved = torch.load(Path(__file__).parents[1] / "support" / "saved" / "torch.pt")[kind]
    p = torch.nn.Parameter(saved["parameter"])
    if kind == "Signum":
        optimizer = hvs.DistributedOptimizer(hvs.Signum([p], 0.5, 0.75, warmup=True))
    else:
        compression = hvs.Compression.signum(0.75, warmup=True)
        optimizer = hvs.DistributedOptimizer(torch.optim.SGD([p], 0.5, 0.5), compression=compression)
    optimizer.load_state_dict(saved["optimizer"])
    m = (1 - 0.75**3) * np.array([1, -1, [-0.5, 0.5][RANK] if SIZE == 2 else 0], np.float32)
    np.testing.assert_array_equal(optimizer.vote_state(p)["momentum_buffer"], m)
    assert optimizer.vote_state(p)["step"] == 3
    assert optimizer.param_groups[0]["lr"] == 0.125
    if kind == "SGD":
        np.testing.assert_array_equal(optimizer.state[p]["momentum_buffer"], [1.75, -1.75, 0])
    # One worker that has only this package has rank 0's.
    plain = hvs.Signum([p], 0.5)
    if kind == "Signum":
        plain.load_state_dict({k: v for k, v in saved["optimizer"].items() if k != "horovod_sign_momenta"})
        np.testing.assert_array_equal(plain.state[p]["momentum_buffer"], (1 - 0.75**3) * np.array([1, -1, -0.5]))
