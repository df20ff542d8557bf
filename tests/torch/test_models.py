"""Models and loops that are not plain, under mpirun: they work as under Horovod, or one sentence says why not."""

import os
import shutil

import horovod.torch as hvd
import numpy as np
import pytest
import simulation as numpy_twin
import torch
import torch_tasks as tasks
from mpi4py import MPI
from ranks import LAST, SIZE, process_sets

import horovod_sign.torch as hvs

RANKS = (1, 2)  # alone, where nothing is sent; even, where votes tie; odd: test_training.py


needs_two = pytest.mark.skipif(SIZE == 1, reason="one rank has no others")


@pytest.fixture(params=["auto", "exchange"])
def transport(request):
    """Small models go past Horovod's engine unless told otherwise; the pipeline is what large ones meet."""
    return request.param


def wrap(optimizer, net, **options):
    return hvs.DistributedOptimizer(optimizer, named_parameters=net.named_parameters(), **options)


def train(optimizer, net, steps=5, simulation=None):
    """Steps on this rank's own data; the replicas must stay alike, and like the simulation."""
    for step in range(steps):
        optimizer.zero_grad()
        tasks.backward(net, step)
        optimizer.step()
        if simulation is not None:
            simulation.step(tasks.gradients_of_all_ranks(net))
    tasks.assert_replicas_identical(net)
    if simulation is not None:
        tasks.assert_simulated(net, simulation)


def moved(net, before) -> list[bool]:
    return [bool((left != right).any()) for left, right in zip(before, tasks.values(net), strict=True)]


@pytest.mark.fault("frozen")
@pytest.mark.parametrize("kind", ["SignSGD", "AdamW"])
def test_frozen_before_and_later_unfrozen(kind, transport):
    net = tasks.model()
    net[0].requires_grad_(False)
    plain = hvs.SignSGD if kind == "SignSGD" else torch.optim.AdamW
    optimizer = wrap(plain(net.parameters(), 0.01, weight_decay=0.1), net, transport=transport)
    before = tasks.values(net)
    train(optimizer, net)
    assert moved(net, before) == [False, False] + [True] * 6
    net[0].requires_grad_(True)
    train(optimizer, net)
    assert all(moved(net, before))


@pytest.mark.fault("frozen")
@pytest.mark.parametrize("kind", ["SignSGD", "Signum", "AdamW"])
def test_frozen_after_wrapping_stays_where_it_is(kind, transport):
    """Also with weight decay, and although its votes had been set up."""
    net = tasks.model()
    plain = torch.optim.AdamW if kind == "AdamW" else getattr(hvs, kind)
    optimizer = wrap(plain(net.parameters(), 0.01, weight_decay=0.1), net, transport=transport)
    train(optimizer, net)
    optimizer.zero_grad()
    tasks.backward(net, 99)
    net[3].requires_grad_(False)  # its gradient of this pass, which is this rank's own, must not count either
    before = tasks.values(net)
    optimizer.step()
    train(optimizer, net)
    assert moved(net, before) == [True, True, False, False] + [True] * 4


@pytest.mark.fault("group-options")
def test_parameter_groups_have_their_own_options(transport):
    net = tasks.model()
    decayed, others = list(net[3].parameters()), [p for i in (0, 4, 5) for p in net[i].parameters()]
    groups = [{"params": decayed, "lr": 0.1, "weight_decay": 0.5, "momentum": 0.0}, {"params": others}]
    optimizer = wrap(hvs.Signum(groups, lr=0.01, momentum=0.9), net, transport=transport)
    simulations = [
        (decayed, tasks.Simulation([p.detach().double().numpy() for p in decayed], hvd.size(), 0.1, 0.0, 0.5)),
        (others, tasks.Simulation([p.detach().double().numpy() for p in others], hvd.size(), 0.01, 0.9)),
    ]
    for step in range(5):
        optimizer.zero_grad()
        tasks.backward(net, step)
        optimizer.step()
        for parameters, simulation in simulations:
            mine = [p.grad.numpy().copy() for p in parameters]
            simulation.step(MPI.COMM_WORLD.allgather(mine))
    for parameters, simulation in simulations:
        for p, simulated in zip(parameters, simulation.x, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), simulated, rtol=1e-5, atol=1e-6)
    tasks.assert_replicas_identical(net)


@pytest.mark.fault("add-param-group")
@pytest.mark.quick
@pytest.mark.parametrize("kind", ["Signum", "Adam"])
def test_add_param_group_after_wrapping(kind, transport):
    net = tasks.model()
    first, second = list(net.parameters())[:4], list(net.parameters())[4:]
    if kind == "Signum":
        optimizer = wrap(hvs.Signum(first, 0.01), net, transport=transport)
    else:
        optimizer = wrap(
            torch.optim.Adam(first, 0.01), net, compression=hvs.Compression.signum(0.5), transport=transport
        )
    before = tasks.values(net)
    train(optimizer, net)
    assert moved(net, before) == [True] * 4 + [False] * 4
    optimizer.add_param_group({"params": second, "lr": 0.1})
    assert optimizer.vote_statistics().coordinates < sum(p.numel() for p in net.parameters())
    train(optimizer, net)
    assert all(moved(net, before))
    assert optimizer.vote_statistics().coordinates == sum(p.numel() for p in net.parameters())


@pytest.mark.fault("differ")
@needs_two
def test_param_groups_that_differ_are_an_error_on_all_ranks(transport):
    net = tasks.model()
    optimizer = wrap(hvs.SignSGD(net[0].parameters(), 0.01), net, transport=transport)
    chosen = net[3] if hvd.rank() == LAST else net[5]
    with pytest.raises(ValueError, match=rf"5\.weight.* on ranks? 0.* and .*3\.weight.* on rank {LAST}:"):
        optimizer.add_param_group({"params": list(chosen.parameters())})
    # One rank whose group is bad by itself: all hear of it.
    options = {"lr": -1.0} if hvd.rank() == LAST else {}
    with pytest.raises(ValueError, match="lr must be at least 0"):
        optimizer.add_param_group({"params": list(net[5].parameters()), **options})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": list(net[5].parameters())})
    net[4].requires_grad_(False)
    train(optimizer, net)


@pytest.mark.fault("differ")
@needs_two
@pytest.mark.parametrize("what", ["dtype", "argument", "wrapped"])
def test_a_rank_that_cannot_vote_is_an_error_on_all_ranks(what):
    odd = hvd.rank() == LAST
    dtype = torch.complex64 if odd and what == "dtype" else torch.float32
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(3, dtype=dtype))], 0.1)
    if odd and what == "wrapped":
        optimizer = hvd.DistributedOptimizer(optimizer)
    options = {"bucket_cap_mb": -1} if odd and what == "argument" else {}
    kind, words = {
        "dtype": (TypeError, "complex64"),
        "argument": (ValueError, "bucket_cap_mb must be more than 0"),
        "wrapped": (ValueError, "already wrapped by Horovod's own"),
    }[what]
    with pytest.raises(kind, match=words if odd else rf"rank {LAST} cannot vote: .*{words}"):
        hvs.DistributedOptimizer(optimizer, **options)


@pytest.mark.fault("overlapping-sets")
@pytest.mark.ranks(3)  # the fewest with two sets of two that overlap
def test_optimizers_of_overlapping_process_sets(transport):
    """Ranks that are in several sets have made more optimizers than the others: their votes still meet."""
    with process_sets(hvd, [0, 1], [1, 2]) as sets:
        for process_set in sets:
            if process_set.included():
                p = torch.nn.Parameter(torch.zeros(5))
                optimizer = hvs.DistributedOptimizer(
                    hvs.SignSGD([p], 1.0), process_set=process_set, transport=transport
                )
                (p.sum() * 2.0).backward()
                optimizer.step()
                assert (p == -1).all()
        optimizer = hvs.DistributedOptimizer(hvs.SignSGD([torch.nn.Parameter(torch.zeros(5))], 1.0))
        optimizer.step()


@pytest.mark.fault("tied")
def test_tied_parameters_vote_once(transport):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Embedding(11, 4), torch.nn.Linear(4, 11, bias=False))
    net[1].weight = net[0].weight
    optimizer = wrap(hvs.SignSGD(net.parameters(), 0.01), net, transport=transport)
    simulation = tasks.Simulation(tasks.values(net), hvd.size(), 0.01)
    for step in range(5):
        optimizer.zero_grad()
        words = torch.tensor([step, hvd.rank(), 5])
        torch.nn.functional.cross_entropy(net(words), words.roll(1)).backward()
        optimizer.step()
        assert optimizer.vote_statistics().coordinates == 44
        simulation.step(tasks.gradients_of_all_ranks(net))
    np.testing.assert_allclose(net[0].weight.detach().numpy(), simulation.x[0], rtol=1e-5, atol=1e-6)
    tasks.assert_replicas_identical(net)


@pytest.mark.fault("scalars")
@pytest.mark.parametrize("transport", ["exchange", "counts"])
@pytest.mark.parametrize("shapes", [[()], [(0,)], [(0, 3), (), (5,), (2, 0)]], ids=str)
def test_scalars_and_empty_parameters(shapes, transport):
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    optimizer = hvs.DistributedOptimizer(hvs.Signum(parameters, 1.0), transport=transport)
    sum(p.sum() for p in parameters).backward()
    optimizer.step()
    assert all((p == -1).all() for p in parameters)
    assert optimizer.vote_statistics().coordinates == sum(p.numel() for p in parameters)


@pytest.mark.fault("frozen")
def test_an_optimizer_with_all_parameters_frozen():
    p = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD([p], 1.0))
    optimizer.step()
    assert optimizer.vote_statistics().coordinates == 0
    assert (p == 0).all()


@pytest.mark.fault("sparse")
@pytest.mark.parametrize("options", [{}, {"sparse_as_dense": True}, {"sparse_as_dense": False}], ids=str)
@pytest.mark.parametrize("kind", ["SignSGD", "Signum", "SGD"])
def test_sparse_gradients_vote_as_dense_ones(kind, options, transport):
    nets = []
    for sparse in (True, False):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Embedding(20, 3, sparse=sparse), torch.nn.Linear(3, 2))
        plain = torch.optim.SGD if kind == "SGD" else getattr(hvs, kind)
        optimizer = wrap(plain(net.parameters(), 0.01), net, transport=transport, **options)
        for step in range(5):
            optimizer.zero_grad()
            words = torch.tensor([step, step, 7 + hvd.rank()])
            if step != 2 or hvd.rank() != LAST:  # once a rank has no gradient
                net(words).square().sum().backward()
            optimizer.step()
        tasks.assert_replicas_identical(net)
        nets.append(net)
    for left, right in zip(*map(tasks.values, nets), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.fault("sixteen-bits")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_models_converted_after_wrapping(dtype, transport):
    """As under Horovod: the parameters stay the same objects. Another shape is refused, not written out of bounds."""
    net, lr = tasks.model(), 2.0**-7
    optimizer = wrap(hvs.Signum(net.parameters(), lr), net, transport=transport)
    net.to(dtype)
    workers = numpy_twin.Workers(tasks.values(net), hvd.size(), numpy_twin.signum(0.9))
    for step in range(3):
        optimizer.zero_grad()
        tasks.backward(net, step, dtype)
        before = [p.detach().float() for p in net.parameters()]
        optimizer.step()
        votes = workers.votes(tasks.gradients_of_all_ranks(net))
        for p, x, vote in zip(net.parameters(), before, votes, strict=True):
            assert torch.equal(p.detach(), (x - lr * torch.from_numpy(vote)).to(dtype))
    tasks.assert_replicas_identical(net)
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD([p], 0.01), transport=transport)
    p.data = torch.zeros(1000)
    with pytest.raises(RuntimeError, match=r"had 3 coordinates.* now has 1000"):
        p.sum().backward()
        optimizer.step()


@pytest.mark.fault("compiled")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models(backend):
    nets = [tasks.model(), tasks.model()]
    compiled = torch.compile(nets[0], backend=backend)
    optimizers = [wrap(hvs.Signum(net.parameters(), 0.01), net) for net in (compiled, nets[1])]
    for step in range(3):
        for optimizer, net in zip(optimizers, (compiled, nets[1]), strict=True):
            optimizer.zero_grad()
            tasks.backward(net, step)
            optimizer.step()
    tasks.assert_replicas_identical(nets[0])
    for left, right in zip(*map(tasks.values, nets), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.fault("compiled")
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler")
@pytest.mark.ranks(2)  # dear; what votes are on one rank alone, it does not know
def test_compiled_by_inductor(monkeypatch):
    """The default backend, on real ranks: eager's gradients up to rounding, and the votes of exactly its own.

    Where a gradient is rounding alone (as of a bias before a batch normalization), eager's sign may differ, so the
    trainings are compared through the simulation, which gets the gradients of the compiled model.
    """
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # this process forks no workers beside MPI
    net, eager = tasks.model(), tasks.model()
    compiled = torch.compile(net)
    optimizer = wrap(hvs.Signum(net.parameters(), 0.01, momentum=0.9), net)
    simulation = tasks.Simulation(tasks.values(net), hvd.size(), 0.01, 0.9)
    for step in range(4):
        eager.load_state_dict(net.state_dict())
        eager.zero_grad()
        tasks.backward(eager, step)
        optimizer.zero_grad()
        tasks.backward(compiled, step)
        optimizer.step()
        for p, q in zip(net.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
        simulation.step(tasks.gradients_of_all_ranks(net))
        tasks.assert_simulated(net, simulation)
    assert torch._dynamo.utils.counters["inductor"], "inductor compiled nothing"


@pytest.mark.fault("closures")
def test_closures_of_both_kinds(transport):
    for plain in (hvs.SignSGD, torch.optim.Adam):
        net = tasks.model()
        optimizer = wrap(plain(net.parameters(), 0.01), net, transport=transport)

        def closure(net=net, optimizer=optimizer):
            optimizer.zero_grad()
            loss = tasks.loss(net, 0)
            loss.backward()
            return loss.item()

        for _ in range(2):
            before, expected = tasks.values(net), tasks.loss(net, 0).item()
            assert optimizer.step(closure) == expected
            assert any(moved(net, before))  # two ranks may tie on a whole bias
        tasks.assert_replicas_identical(net)


@pytest.mark.fault("two-models")
@pytest.mark.quick
def test_two_models_and_optimizers_interleaved(transport):
    """Ranks finish the backward passes of two models in different orders."""
    nets = [tasks.model(seed) for seed in (1, 2)]
    optimizers = [
        wrap(hvs.Signum(net.parameters(), 0.01), net, bucket_cap_mb=0.001, transport=transport) for net in nets
    ]
    simulations = [tasks.Simulation(tasks.values(net), hvd.size(), 0.01, 0.9) for net in nets]
    for step in range(10):
        for optimizer in optimizers:
            optimizer.zero_grad()
        for net in nets if (hvd.rank() + step) % 2 else nets[::-1]:
            tasks.backward(net, step)
        for optimizer, net, simulation in zip(optimizers, nets, simulations, strict=True):
            optimizer.step()
            simulation.step(tasks.gradients_of_all_ranks(net))
    for net, simulation in zip(nets, simulations, strict=True):
        tasks.assert_simulated(net, simulation)


@pytest.mark.fault("two-models")
def test_two_optimizers_share_a_model(transport):
    """Each has its part, and only its own part moves."""
    net = tasks.model()
    halves = list(net.parameters())[:4], list(net.parameters())[4:]
    optimizers = [wrap(hvs.SignSGD(half, 0.01), net, transport=transport) for half in halves]
    before, simulated = tasks.values(net), tasks.Simulation(tasks.values(net), hvd.size(), 0.01)
    tasks.backward(net, 0)
    optimizers[0].step()
    assert moved(net, before) == [True] * 4 + [False] * 4
    optimizers[1].step()
    simulated.step(tasks.gradients_of_all_ranks(net))
    tasks.assert_replicas_identical(net)
    for value, expected in zip(tasks.values(net), simulated.x, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.fault("schedulers")
@pytest.mark.parametrize("schedule", ["StepLR", "OneCycleLR", "LambdaLR"])
def test_schedulers_around_the_wrapped_optimizer(schedule):
    net = tasks.model()
    optimizer = wrap(hvs.Signum(net.parameters(), 0.01), net)
    make = {
        "StepLR": lambda: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
        "OneCycleLR": lambda: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5),
        "LambdaLR": lambda: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step),
    }
    scheduler = make[schedule]()
    for step in range(4):
        lr = optimizer.param_groups[0]["lr"]
        before = net[3].bias.detach().clone()
        optimizer.zero_grad()
        tasks.backward(net, step)
        optimizer.step()
        scheduler.step()
        distance = (net[3].bias - before).abs()
        assert torch.isclose(distance, torch.tensor(lr), rtol=1e-4).logical_or(distance == 0).all()
    assert optimizer.param_groups[0]["lr"] != 0.01
    tasks.assert_replicas_identical(net)


@pytest.mark.fault("schedulers")
def test_learning_rates_in_tensors():
    nets = [tasks.model(), tasks.model()]
    for net, lr in zip(nets, (0.0625, torch.tensor(0.0625)), strict=True):
        train(wrap(hvs.SignSGD(net.parameters(), lr, weight_decay=0.25), net), net)
    for left, right in zip(*map(tasks.values, nets), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.fault("clipping")
def test_clipping_before_the_vote(transport):
    """With overlap=False the momenta see clipped gradients; else the user is told that the change comes too late."""
    net = tasks.model()
    optimizer = wrap(hvs.Signum(net.parameters(), 0.01), net, overlap=False, transport=transport)
    simulation = tasks.Simulation(tasks.values(net), hvd.size(), 0.01, 0.9)
    for step in range(5):
        optimizer.zero_grad()
        tasks.backward(net, step)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1 * (step + 1))
        optimizer.step()
        simulation.step(tasks.gradients_of_all_ranks(net))
    tasks.assert_simulated(net, simulation)
    optimizer = wrap(hvs.Signum(net.parameters(), 0.01), net, transport="exchange")
    tasks.backward(net, 0)
    torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    with pytest.warns(UserWarning, match="overlap=False"):
        optimizer.step()


def test_a_discarded_backward_without_overlap(transport):
    net = tasks.model()
    optimizer = wrap(hvs.Signum(net.parameters(), 0.01), net, overlap=False, transport=transport)
    tasks.backward(net, 0)
    optimizer.zero_grad()
    train(optimizer, net, simulation=tasks.Simulation(tasks.values(net), hvd.size(), 0.01, 0.9))


@pytest.mark.fault("stepping-twice")
def test_stepping_twice_without_a_backward(transport):
    """SignSGD and Signum step again on the same gradients, as in torch; votes are not voted on a second time."""
    nets = [tasks.model(), tasks.model()]
    plain = hvs.Signum(nets[0].parameters(), 0.01)
    optimizer = wrap(hvs.Signum(nets[1].parameters(), 0.01), nets[1], transport=transport)
    for each, net in ((plain, nets[0]), (optimizer, nets[1])):
        tasks.backward(net, 0)
        each.step()
        each.step()
    tasks.assert_replicas_identical(nets[1])
    if hvd.size() == 1:
        for left, right in zip(*map(tasks.values, nets), strict=True):
            np.testing.assert_array_equal(left, right)
    adam = wrap(torch.optim.Adam(nets[1].parameters(), 0.01), nets[1], transport=transport)
    adam.zero_grad()
    tasks.backward(nets[1], 0)
    adam.step()
    with pytest.raises(RuntimeError, match="called twice without a backward"):
        adam.step()
    adam.zero_grad()
    tasks.backward(nets[1], 1)
    adam.step()


@pytest.mark.fault("unused")
def test_unused_parameters_do_not_hold_up_the_votes(transport):
    net = tasks.model()
    net.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    optimizer = wrap(hvs.Signum(net.parameters(), 0.01), net, transport=transport)
    train(optimizer, net)
    assert (net.unused == 1).all()


@pytest.mark.fault("predivide")
@needs_two
def test_predivided_counts_are_refused():
    """gradient_predivide_factor of Horovod's own wrapper would silently be a wrong vote."""
    for factor in (2.0, 0.5):
        net = tasks.model()
        with pytest.raises(ValueError, match=r"gradient_predivide_factor|op=hvd\.Sum"):
            optimizer = hvd.DistributedOptimizer(
                torch.optim.SGD(net.parameters(), 0.1),
                # Names of their own: the ops that the error leaves behind may still be under way.
                named_parameters=[(f"{factor}.{name}", p) for name, p in net.named_parameters()],
                compression=hvs.Compression.signsgd(),
                gradient_predivide_factor=factor,
            )
            tasks.backward(net, 0)
            optimizer.step()
