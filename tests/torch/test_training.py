"""Training by the PyTorch adapter under mpirun: replicas stay identical, and equal to the algorithm in NumPy."""

import horovod.torch as hvd
import numpy as np
import pytest
import simulation
import torch
import torch_tasks as tasks
from kernel_sets import KERNEL_SETS, use_kernels
from mpi4py import MPI
from ranks import process_sets
from torch_rules import TwoMomenta

import horovod_sign.torch as hvs

RANKS = (1, 3)  # alone; odd, with process sets of some ranks; even, where votes tie: test_models.py


STEPS = 20
RULES = {"SignSGD": simulation.SIGNSGD, "Signum": simulation.signum(0.9), "Lion": simulation.LION}


def wrap(optimizer, net, **options):
    return hvs.DistributedOptimizer(optimizer, named_parameters=net.named_parameters(), **options)


@pytest.mark.quick
@pytest.mark.parametrize("transport", ["exchange", "counts"])
@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize("kind", RULES)
def test_twenty_steps_equal_the_simulation(kind, abstain, transport):
    net = tasks.model()
    optimizer = getattr(hvs, kind)(net.parameters(), lr=0.01, weight_decay=0.1)
    optimizer = wrap(optimizer, net, abstain=abstain, transport=transport, bucket_cap_mb=0.001)
    expected = simulation.Simulation(tasks.values(net), hvd.size(), 0.01, RULES[kind], 0.1, abstain)
    for step in range(STEPS):
        optimizer.zero_grad()
        tasks.backward(net, step)
        optimizer.step()
        expected.step(tasks.gradients_of_all_ranks(net))
    tasks.assert_simulated(net, expected)


@pytest.mark.parametrize("momentum", [None, 0.9, "of a rule"])
def test_stock_wrapper_gives_the_same_parameters(momentum):
    """Horovod's own DistributedOptimizer with our compression, and ours around the same optimizer, bit for bit."""
    if hvd.size() == 1:
        pytest.skip("Horovod's own wrapper does nothing on one rank")
    stock_net, net = tasks.model(), tasks.model()
    stock = hvd.DistributedOptimizer(
        torch.optim.SGD(stock_net.parameters(), lr=0.01, momentum=0.5, nesterov=True),
        named_parameters=stock_net.named_parameters(),
        compression=compression(momentum, named_parameters=stock_net.named_parameters()),
        op=hvd.Sum,
    )
    ours = wrap(
        torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.5, nesterov=True), net, compression=compression(momentum)
    )
    for step in range(STEPS):
        for optimizer, each in ((stock, stock_net), (ours, net)):
            optimizer.zero_grad()
            tasks.backward(each, step)
            optimizer.step()
    tasks.assert_replicas_identical(net)
    for left, right in zip(tasks.values(stock_net), tasks.values(net), strict=True):
        np.testing.assert_array_equal(left, right)


def compression(momentum, **options):
    if momentum == "of a rule":
        return hvs.Compression.of(TwoMomenta(), **options)
    return hvs.Compression.signsgd() if momentum is None else hvs.Compression.signum(momentum, **options)


@pytest.mark.fault("sixteen-bits")
@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_stepping_from_bits_equals_stepping_from_votes(dtype, warmup):
    """Signum's step by the kernel, and by torch on votes written into the gradients, bit for bit."""
    nets = [tasks.model(dtype=dtype) for _ in range(2)]
    fused, written = (wrap(hvs.Signum(n.parameters(), 0.01, 0.9, 0.1, warmup), n) for n in nets)
    for step in range(STEPS):
        for net, optimizer in zip(nets, (fused, written), strict=True):
            optimizer.zero_grad()
            tasks.backward(net, step, dtype)
        fused.step()
        written.synchronize()
        with written.skip_synchronize():
            written.step()
    tasks.assert_replicas_identical(nets[0])
    for left, right in zip(*map(tasks.values, nets), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.ranks(2)  # where votes tie; how many ranks there are is no affair of the kernels
@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["SignSGD", "Signum", "Adam"])
def test_all_kernels_train_alike(kind, dtype, abstain, monkeypatch):
    """Also those for GPUs, here on the CPU, bit for bit."""
    nets = [tasks.model(dtype=dtype).to(memory_format=torch.channels_last) for _ in KERNEL_SETS]
    for net, kernels in zip(nets, KERNEL_SETS, strict=True):
        use_kernels(monkeypatch, kernels)
        if kind == "Adam":
            plain, options = torch.optim.Adam(net.parameters(), 0.01), {"compression": hvs.Compression.signum(0.5)}
        elif kind == "SignSGD":
            plain, options = hvs.SignSGD(net.parameters(), 0.01, 0.1), {}
        else:
            plain, options = hvs.Signum(net.parameters(), 0.01, 0.5, 0.1, warmup=True), {}
        optimizer = wrap(plain, net, abstain=abstain, **options)
        for step in range(3):  # the second is the first after Signum's warm-up
            optimizer.zero_grad()
            tasks.backward(net, step, dtype)
            optimizer.step()
        tasks.assert_replicas_identical(net)
    for native, *others in zip(*map(tasks.values, nets), strict=True):
        for values in others:
            np.testing.assert_array_equal(values, native)


@pytest.mark.parametrize("make", [hvs.SignSGD, hvs.Signum, hvs.Lion])
def test_one_rank_steps_like_the_plain_optimizer(make):
    """On a process set of this rank alone, the vote is the rank's own, as in the plain optimizer."""
    with process_sets(hvd, *[[rank] for rank in range(hvd.size())]) as sets:
        nets = [tasks.model(), tasks.model()]
        plain = make(nets[0].parameters(), 0.01, weight_decay=0.1)
        voted = wrap(make(nets[1].parameters(), 0.01, weight_decay=0.1), nets[1], process_set=sets[hvd.rank()])
        for step in range(STEPS):
            for net, optimizer in zip(nets, (plain, voted), strict=True):
                optimizer.zero_grad()
                tasks.backward(net, step)
                optimizer.step()
        for left, right in zip(*map(tasks.values, nets), strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.fault("process-sets")
def test_two_votes_on_disjoint_process_sets():
    """Even and odd ranks train different models at the same time; each set's replicas are equal to its simulation."""
    if hvd.size() == 1:
        pytest.skip("one rank has no two sets")
    members = [list(range(parity, hvd.size(), 2)) for parity in (0, 1)]
    with process_sets(hvd, *members) as sets:
        parity = hvd.rank() % 2
        net = tasks.model(seed=parity)
        optimizer = wrap(hvs.SignSGD(net.parameters(), 0.01), net, process_set=sets[parity])
        simulation = tasks.Simulation(tasks.values(net), len(members[parity]), 0.01)
        for step in range(STEPS):
            optimizer.zero_grad()
            tasks.backward(net, step)
            optimizer.step()
            everyone = tasks.gradients_of_all_ranks(net)
            simulation.step([everyone[rank] for rank in members[parity]])
        for value, simulated in zip(tasks.values(net), simulation.x, strict=True):
            np.testing.assert_allclose(value, simulated, rtol=1e-5, atol=1e-6)


@pytest.mark.fault("accumulation")
def test_backward_passes_per_step():
    net = tasks.model()
    optimizer = wrap(hvs.Signum(net.parameters(), 0.01), net, backward_passes_per_step=3)
    simulation = tasks.Simulation(tasks.values(net), hvd.size(), 0.01, 0.9)
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(3):
            tasks.backward(net, 3 * step + part)
        optimizer.step()
        simulation.step(tasks.gradients_of_all_ranks(net))
    tasks.assert_simulated(net, simulation)


@pytest.mark.fault("unused")
@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("transport", ["exchange", "counts"])
def test_a_parameter_without_gradient_on_some_rank_abstains_there(transport, momentum):
    net = tasks.model()
    plain = hvs.SignSGD(net.parameters(), 0.01) if momentum is None else hvs.Signum(net.parameters(), 0.01, momentum)
    optimizer = wrap(plain, net, transport=transport)
    simulation = tasks.Simulation(tasks.values(net), hvd.size(), 0.01, momentum)
    for step in range(STEPS):
        optimizer.zero_grad()
        frozen = net[3] if hvd.rank() == step % hvd.size() else None
        if frozen is not None:
            output = frozen.forward
            frozen.forward = lambda x, f=frozen: torch.nn.functional.linear(x, f.weight.detach(), f.bias)
        tasks.backward(net, step)
        if frozen is not None:
            frozen.forward = output
            assert frozen.weight.grad is None
        optimizer.step()
        simulation.step(tasks.gradients_of_all_ranks(net))
    tasks.assert_simulated(net, simulation)


@pytest.mark.fault("memory")
def test_channels_last():
    """Parameters and gradients of different memory layouts: coordinates are matched by index, not by position."""
    net = tasks.model().to(memory_format=torch.channels_last)
    net[3].weight.data = net[3].weight.data.t().contiguous().t()
    assert not net[3].weight.is_contiguous()
    optimizer = wrap(hvs.Signum(net.parameters(), 0.01), net)
    simulation = tasks.Simulation(tasks.values(net), hvd.size(), 0.01, 0.9)
    for step in range(STEPS):
        optimizer.zero_grad()
        tasks.backward(net, step)
        optimizer.step()
        simulation.step(tasks.gradients_of_all_ranks(net))
    tasks.assert_simulated(net, simulation)


@pytest.mark.fault("has-state")
def test_scheduler_and_state_made_before_wrapping_live_on():
    net = tasks.model()
    plain = torch.optim.Adam(net.parameters(), 0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(plain, 1, 0.5)
    tasks.backward(net, 0)
    plain.step()
    optimizer = wrap(plain, net)
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.state[next(net.parameters())]["step"] == 1
    hvd.broadcast_parameters(net.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    optimizer.zero_grad()
    tasks.backward(net, 1)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.005
    assert {float(g) for p in net.parameters() for g in p.grad.flatten()} <= {-1.0, 0.0, 1.0}
    tasks.assert_replicas_identical(net)


@pytest.mark.parametrize("make", [hvs.SignSGD, hvs.Signum, torch.optim.AdamW])
def test_broadcast_of_fresh_state_moves_nothing(make):
    """Horovod's broadcast_optimizer_state makes missing state by a step; ours has nothing missing, so none is taken."""
    net = tasks.model()
    before = tasks.values(net)
    optimizer = wrap(make(net.parameters(), 0.01, weight_decay=0.0), net)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    for left, right in zip(before, tasks.values(net), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.fault("resume")
@pytest.mark.parametrize("kind", ["Signum", "compression"])
def test_state_dict_resumes_bit_exactly(kind):
    def build():
        net = tasks.model()
        if kind == "Signum":
            return net, wrap(hvs.Signum(net.parameters(), 0.01), net)
        return net, wrap(torch.optim.Adam(net.parameters(), 0.01), net, compression=hvs.Compression.signum(warmup=True))

    net, optimizer = build()
    tasks.train(net, optimizer, range(10))
    saved = net.state_dict(), optimizer.state_dict()
    resumed, resumed_optimizer = build()
    resumed.load_state_dict(saved[0])
    resumed_optimizer.load_state_dict(saved[1])
    tasks.train(resumed, resumed_optimizer, range(10, 20))
    whole, whole_optimizer = build()
    tasks.train(whole, whole_optimizer, range(20))
    for left, right in zip(tasks.values(resumed), tasks.values(whole), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.fault("clipping")
def test_clipping_between_synchronize_and_step():
    net = tasks.model()
    optimizer = wrap(torch.optim.SGD(net.parameters(), 1.0), net)
    tasks.backward(net, 0)
    before = tasks.values(net)
    optimizer.synchronize()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
    with optimizer.skip_synchronize():
        optimizer.step()
    moved = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(tasks.values(net), before, strict=True)))
    np.testing.assert_allclose(moved, 0.5, rtol=1e-3)


@pytest.mark.fault("closures")
def test_closure():
    net = tasks.model()
    optimizer = wrap(hvs.SignSGD(net.parameters(), 0.01), net)

    def closure():
        optimizer.zero_grad()
        tasks.backward(net, 0)
        return 1.5

    assert optimizer.step(closure) == 1.5
    tasks.assert_replicas_identical(net)


def test_sent_bytes_are_those_of_one_bit_each_way():
    """Gradients of one sign everywhere: no second plane, so (M-1)/M * n/8 bytes in each phase, and a byte a message."""
    size = hvd.size()
    p = torch.nn.Parameter(torch.zeros(64 * size * 10))
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD([p], 0.01))
    (p.sum() * (1 + hvd.rank())).backward()
    optimizer.step()
    assert optimizer.bytes_sent == 2 * (size - 1) * (80 + 1)
    assert (p == -torch.tensor(0.01)).all()


@pytest.mark.fault("wrapped-by-horovod")
@pytest.mark.fault("average")
@pytest.mark.fault("wrapped-twice")
def test_mistakes_are_one_clear_sentence():
    net = tasks.model()
    parameters = list(net.named_parameters())

    def sgd():
        return torch.optim.SGD(net.parameters(), 0.1)

    for arguments, kind, words in [
        ((hvd.DistributedOptimizer(sgd()),), ValueError, "already wrapped by Horovod's own"),
        ((wrap(sgd(), net),), ValueError, "already wrapped by hvs"),
        (("sgd",), TypeError, "must be a torch.optim.Optimizer"),
        ((sgd(), parameters[:-1]), ValueError, "lacks parameters"),
        ((sgd(), [*parameters, parameters[0]]), ValueError, "must be unique"),
        ((sgd(), [p for _, p in parameters]), ValueError, "pairs of name and parameter"),
        ((hvs.Signum(net.parameters(), 0.1), None, hvs.Compression.signum()), ValueError, "leave out compression"),
    ]:
        with pytest.raises(kind, match=words):
            hvs.DistributedOptimizer(*arguments)
    for options, kind, words in [
        ({"op": hvd.Min}, TypeError, "has no op=Min"),
        ({"transport": "ring"}, ValueError, "transport must be"),
        ({"backward_passes_per_step": 0}, ValueError, "at least 1"),
        ({"process_set": hvd.ProcessSet([0])}, ValueError, "not registered"),
    ]:
        with pytest.raises(kind, match=words):
            hvs.DistributedOptimizer(sgd(), **options)
    for options in ({"lr": -1.0}, {"lr": 0.1, "weight_decay": -1.0}, {"lr": 0.1, "momentum": 1.0}):
        with pytest.raises(ValueError, match="at least 0"):
            hvs.Signum(net.parameters(), **options)
    with pytest.raises(TypeError, match=r"complex64.*votes are on"):
        hvs.DistributedOptimizer(hvs.SignSGD([torch.nn.Parameter(torch.zeros(3, dtype=torch.complex64))], 0.1))


@pytest.mark.fault("zero-grad")
def test_misuse_in_the_loop():
    net = tasks.model()
    optimizer = wrap(hvs.SignSGD(net.parameters(), 0.01), net)
    tasks.backward(net, 0)
    with pytest.raises(AssertionError, match="being voted on"):
        optimizer.zero_grad()
    with pytest.raises(AssertionError, match="more than backward_passes_per_step=1"):
        tasks.backward(net, 1)
    optimizer.step()
    with pytest.raises(AssertionError, match=r"call optimizer\.synchronize"), optimizer.skip_synchronize():
        optimizer.step()
    tasks.assert_replicas_identical(net)


@pytest.mark.fault("differ")
@pytest.mark.parametrize("what", ["shape", "number", "order", "dtype", "options"])
def test_ranks_whose_parameters_differ_are_all_told(what):
    if hvd.size() == 1:
        pytest.skip("one rank agrees with itself")
    odd = MPI.COMM_WORLD.rank == hvd.size() - 1
    shapes = [(3, 4), (5,)]
    if odd and what == "shape":
        shapes[1] = (6,)
    if odd and what == "number":
        shapes.append((7,))
    if odd and what == "order":
        shapes.reverse()
    dtype = torch.float64 if odd and what == "dtype" else torch.float32
    parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    with pytest.raises(ValueError, match=rf"same options, but .* is .* on ranks? 0.* and .* on rank {hvd.size() - 1}:"):
        hvs.DistributedOptimizer(hvs.SignSGD(parameters, 0.1), abstain=not (odd and what == "options"))


@pytest.mark.fault("average")
def test_averaged_counts_are_refused():
    """Horovod's default op=Average would silently be a wrong vote in its own wrapper."""
    if hvd.size() == 1:
        pytest.skip("Horovod's own wrapper does nothing on one rank")
    net = tasks.model()
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(net.parameters(), 0.1),
        # Names of their own: the ops that the error leaves behind may still be under way.
        named_parameters=[(f"averaged.{name}", p) for name, p in net.named_parameters()],
        compression=hvs.Compression.signsgd(),
    )
    tasks.backward(net, 0)
    with pytest.raises(ValueError, match=r"op=hvd\.Sum"):
        optimizer.step()


def test_signum_in_the_stock_wrapper_needs_names():
    if hvd.size() == 1:
        pytest.skip("Horovod's own wrapper does nothing on one rank")
    net = tasks.model()
    plain = torch.optim.SGD(net.parameters(), 0.1)
    optimizer = hvd.DistributedOptimizer(plain, compression=hvs.Compression.signum(), op=hvd.Sum)
    optimizer.zero_grad()  # by a name, since Horovod's hooks end with the optimizer
    with pytest.raises(ValueError, match=r"named_parameters=model\.named_parameters"):
        tasks.backward(net, 0)
