"""Loops as users write them: what Horovod's scripts do works, and what cannot work is one sentence on all ranks."""

import contextlib
import copy
import pickle
import signal
import warnings

import horovod.torch as hvd
import numpy as np
import oracle
import pytest
import torch
import torch_tasks as tasks
from mpi4py import MPI
from ranks import LAST, RANK, SIZE

import horovod_sign.torch as hvs

RANKS = (1, 2)  # alone, where nothing is sent; one rank that does something and another that does not

OURS = ("SignSGD", "Signum")


def wrap(optimizer, net, **options):
    return hvs.DistributedOptimizer(optimizer, named_parameters=net.named_parameters(), **options)


def plain_optimizer(kind, parameters):
    return getattr(hvs if kind in OURS else torch.optim, kind)(parameters, 0.01)


def assert_equal(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def names_that_raise(net, error):
    yield from list(net.named_parameters())[:2]
    raise error


class Undecided:
    """Neither true nor false, as an array of several elements."""

    def __bool__(self):
        raise RuntimeError("neither true nor false")


WRONG = {
    "float16": ({"compression": hvd.Compression.fp16}, TypeError, "compression must be hvs.Compression.signsgd"),
    "not called": ({"compression": hvs.Compression.signum}, TypeError, "compression must be hvs.Compression.signsgd"),
    "op by position": ({"process_set": hvd.Average}, TypeError, "Horovod's op, given by position"),
    "no process set": ({"process_set": "all"}, TypeError, "process_set must be a horovod.torch.ProcessSet"),
    "op": ({"op": hvd.Adasum}, TypeError, "has no op=Adasum"),
    "text": ({"bucket_cap_mb": "25"}, TypeError, "bucket_cap_mb must be a number"),
    "infinity": ({"bucket_cap_mb": float("inf")}, ValueError, "bucket_cap_mb must be more than 0 and finite"),
    "undecided": ({"abstain": Undecided()}, RuntimeError, "neither true nor false"),
    "iterator": ({"named_parameters": RuntimeError("out of names")}, RuntimeError, "out of names"),
    "key": ({"named_parameters": KeyError("words")}, KeyError, "words"),
    "no iterator": ({"named_parameters": 5}, TypeError, "not iterable"),
    "no parameters": ({"named_parameters": [("weight", [])]}, TypeError, "unhashable"),
    "passes": ({"backward_passes_per_step": None}, ValueError, "integer of at least 1"),
    "scaler": ({"grad_scaler": "scaler"}, TypeError, "grad_scaler must be"),
    "no optimizer": ({"optimizer": None}, TypeError, "must be a torch.optim.Optimizer"),
}


@pytest.mark.fault("wrapping-fails")
@pytest.mark.quick
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("what", WRONG)
def test_what_goes_wrong_on_one_rank_while_wrapping_reaches_all(what, everywhere):
    wrong, kind, words = WRONG[what]
    net = tasks.model()
    options = {"optimizer": torch.optim.SGD(net.parameters(), 0.1), "named_parameters": net.named_parameters()}
    if everywhere or RANK == LAST:
        options |= wrong
        if isinstance(options["named_parameters"], Exception):
            options["named_parameters"] = names_that_raise(net, options["named_parameters"])
        with pytest.raises(kind, match=words):
            hvs.DistributedOptimizer(**options)
    else:
        with pytest.raises(
            TypeError if kind is TypeError else ValueError, match=rf"rank {LAST} cannot vote: .*{words}"
        ):
            hvs.DistributedOptimizer(**options)


@pytest.mark.fault("wrapping-fails")
def test_what_goes_wrong_on_one_rank_with_a_new_group_reaches_all():
    net = tasks.model()
    optimizer = wrap(hvs.SignSGD(net[0].parameters(), 0.01), net)

    def parameters():
        yield from net[3].parameters()
        raise RuntimeError("out of parameters")

    with pytest.raises(RuntimeError if RANK == LAST else ValueError, match="out of parameters"):
        optimizer.add_param_group({"params": parameters() if RANK == LAST else list(net[3].parameters())})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": list(net[3].parameters())})
    train(net, optimizer, range(2))


def train(net, optimizer, steps):
    tasks.train(net, optimizer, steps)
    tasks.assert_replicas_identical(net)


def data_edit(p):
    p.grad.data.mul_(-1)


def numpy_edit(p):
    gradient = p.grad.numpy()
    gradient[...] = -gradient


def replaced(p):
    p.grad = -p.grad


EDITS = {"data": data_edit, "numpy": numpy_edit, "torch": lambda p: p.grad.neg_(), "replaced": replaced}


def without_memory(p):
    p.grad = torch._efficientzerotensor(p.shape)


def freed(p):
    p.grad.untyped_storage().resize_(0)


TOO_LATE = {**EDITS, "without memory": without_memory, "freed": freed}


def edited_steps(net, optimizer, edit, steps=6, simulation=None):
    """How often the user is told that a change comes too late."""
    told = 0
    for step in range(steps):
        optimizer.zero_grad()
        tasks.backward(net, step)
        for p in net.parameters():
            edit(p)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
        told += sum("changed after backward had packed them" in str(w.message) for w in caught)
        if simulation is not None:
            simulation.step(tasks.gradients_of_all_ranks(net))
    tasks.assert_replicas_identical(net)
    if simulation is not None:
        tasks.assert_simulated(net, simulation)
    return told


@pytest.mark.fault("clipping")
@pytest.mark.parametrize("options", [{"transport": "exchange"}, {"transport": "counts"}], ids=str)
@pytest.mark.parametrize("edit", TOO_LATE)
def test_gradients_changed_too_late_are_noticed_however_they_were(edit, options):
    net = tasks.model()
    optimizer = wrap(hvs.Signum(net.parameters(), 0.01), net, **options)
    assert edited_steps(net, optimizer, TOO_LATE[edit]) == 1


@pytest.mark.fault("clipping")
@pytest.mark.parametrize("kind", ["SignSGD", "SGD"])
@pytest.mark.parametrize("late", [0, 4, 5])
def test_a_change_that_begins_later_is_noticed(late, kind):
    """Also in steps in which only what torch counts is looked at; what it does not count, in one of the next."""
    for edit, steps in (("torch", late + 1), ("data", 9)):
        net = tasks.model()
        optimizer = wrap(plain_optimizer(kind, net.parameters()), net, transport="exchange")
        edited_steps(net, optimizer, lambda p: None, steps=late)
        assert edited_steps(net, optimizer, EDITS[edit], steps=steps) == 1


@pytest.mark.fault("clipping")
@pytest.mark.parametrize("transport", ["exchange", "auto"])
def test_a_norm_that_is_logged_is_no_change(transport):
    """Clipping to an infinite norm multiplies by one; so does each rank on its own that logs less often."""
    net = tasks.model()
    optimizer = wrap(hvs.Signum(net.parameters(), 0.01), net, transport=transport)
    norm = np.inf if RANK == 0 else 1e30
    for _ in range(3):
        assert edited_steps(net, optimizer, lambda p: torch.nn.utils.clip_grad_norm_(p, norm), steps=4) == 0


@pytest.mark.fault("clipping")
@pytest.mark.skipif(SIZE == 1, reason="one rank votes by the engine")
@pytest.mark.parametrize("edit", EDITS)
def test_changes_count_and_are_no_fault_where_votes_are_not_packed_before_the_step(edit):
    """By MPI itself, as small models are; and by the engine with overlap=False."""
    for options in ({}, {"overlap": False, "transport": "exchange"}):
        net = tasks.model()
        optimizer = wrap(hvs.SignSGD(net.parameters(), 0.01), net, **options)
        simulation = tasks.Simulation(tasks.values(net), SIZE, 0.01)
        assert edited_steps(net, optimizer, EDITS[edit], steps=3, simulation=simulation) == 0


def test_changes_in_large_models_come_too_late_by_mpi_too(monkeypatch):
    monkeypatch.setattr("horovod_sign.tensors.buckets.PACK_COORDINATES", 1)
    net = tasks.model()
    assert edited_steps(net, wrap(hvs.Signum(net.parameters(), 0.01), net), data_edit) == 1


@pytest.mark.fault("clipping")
@pytest.mark.parametrize("edit", ["torch", "none"])
def test_gradients_changed_while_a_node_averages_them(edit):
    net = tasks.model()
    optimizer = wrap(hvs.SignSGD(net.parameters(), 0.01), net, hierarchical=True)
    alone = SIZE == 1  # where nothing is averaged
    found = edited_steps(net, optimizer, EDITS.get(edit, lambda p: None))
    assert found == (1 if edit == "torch" else 0), alone


@pytest.mark.fault("skip-synchronize")
@pytest.mark.parametrize("kind", ["SignSGD", "Signum", "SGD"])
def test_skip_synchronize_entered_once_for_a_whole_loop(kind):
    """As PyTorch Lightning does; a step by step whose gradients were not voted on is refused."""
    nets = [tasks.model(), tasks.model()]
    optimizers = [wrap(plain_optimizer(kind, net.parameters()), net) for net in nets]
    train(nets[0], optimizers[0], range(4))
    with contextlib.ExitStack() as stack:
        stack.enter_context(optimizers[1].skip_synchronize())
        for step in range(3):
            optimizers[1].zero_grad()
            tasks.backward(nets[1], step)
            optimizers[1].synchronize()
            optimizers[1].step()

        def closure():
            optimizers[1].zero_grad()
            loss = tasks.loss(nets[1], 3)
            loss.backward()
            optimizers[1].synchronize()
            return loss

        assert optimizers[1].step(closure).item() > 0
        assert_equal(tasks.values(nets[1]), tasks.values(nets[0]))
        for again in (False, True):  # nothing was synchronized; or something was, before a further backward
            if again:
                optimizers[1].synchronize()
            tasks.backward(nets[1], 4)
            with pytest.raises(AssertionError, match=r"call optimizer\.synchronize\(\) after each backward"):
                optimizers[1].step()
            optimizers[1].synchronize()
            optimizers[1].step()
            optimizers[1].zero_grad()
    train(nets[1], optimizers[1], range(5, 7))


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization (Foret et al. 2021, arXiv 2010.01412), written as its users write it."""

    def __init__(self, params, lr, rho=0.05):
        super().__init__(params, {"lr": lr, "rho": rho})

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None
        closure = torch.enable_grad()(closure)
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        steps = [p.grad * (self.param_groups[0]["rho"] / norm) for p in parameters]
        for p, step in zip(parameters, steps, strict=True):
            p.add_(step)
        self.zero_grad()
        closure()
        for p, step in zip(parameters, steps, strict=True):
            p.sub_(step)
            p.add_(p.grad, alpha=-self.param_groups[0]["lr"])


def votes_for_gradients(net):
    """What votes of all ranks make of the gradients, by the oracle."""
    of_all = MPI.COMM_WORLD.allgather([p.grad.numpy().copy() for p in net.parameters()])
    for p, ballots in zip(net.parameters(), zip(*of_all, strict=True), strict=True):
        p.grad.copy_(torch.from_numpy(oracle.vote(ballots)))


def closure_of(net, optimizer, step, after=None):
    def closure():
        optimizer.zero_grad()
        loss = tasks.loss(net, step)
        loss.backward()
        if after is not None:
            after(net)
            loss = loss.detach().double()
            loss = torch.tensor(sum(MPI.COMM_WORLD.allgather(loss.item())) / SIZE)
        return loss

    return closure


@pytest.mark.fault("forgotten-optimizer")
@pytest.mark.parametrize("kind", ["SignSGD", "Signum", "Adam"])
def test_a_copy_of_an_optimizer_can_be_saved_and_no_more(kind):
    """Trainers keep one beside the best model; in torch's own pickle it would be an error about a class."""
    net = tasks.model()
    options = {"compression": hvs.Compression.signum(0.9)} if kind == "Adam" else {}
    optimizer = wrap(plain_optimizer(kind, net.parameters()), net, **options)
    tasks.train(net, optimizer, range(2))
    best_net, best = copy.deepcopy((net, optimizer))
    assert all(p is q for p, q in zip(best_net.parameters(), best.param_groups[0]["params"], strict=True))
    saved = best.state_dict()
    tasks.train(net, optimizer, range(2, 4))
    for use in (best.step, best.zero_grad, best.synchronize, best.vote_statistics, lambda: hvs.gather_state_dict(best)):
        with pytest.raises(RuntimeError, match="is a copy of one"):
            use()
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(optimizer)
    other = wrap(plain_optimizer(kind, best_net.parameters()), best_net, **options)
    other.load_state_dict(saved)
    tasks.train(best_net, other, range(2, 4))
    assert_equal(tasks.values(best_net), tasks.values(net))
    tasks.assert_replicas_identical(net)


@pytest.mark.fault("closures")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transport", ["auto", "exchange"])
@pytest.mark.parametrize("kind", ["LBFGS", "line search", "SAM"])
def test_optimizers_that_need_their_closure(kind, transport):
    """Each evaluation ends in a vote, and all ranks see one loss: as on one rank with those gradients and losses."""
    nets = [tasks.model(), tasks.model()]
    make = {
        "LBFGS": lambda p: torch.optim.LBFGS(p, 0.01, max_iter=4),
        "line search": lambda p: torch.optim.LBFGS(p, 0.01, max_iter=4, line_search_fn="strong_wolfe"),
        "SAM": lambda p: SAM(p, 0.01),
    }[kind]
    plain = make(list(nets[0].parameters()))
    optimizer = wrap(make(list(nets[1].parameters())), nets[1], transport=transport)
    for step in range(3):
        for net, each, after in ((nets[0], plain, votes_for_gradients), (nets[1], optimizer, None)):
            if kind == "SAM":
                each.zero_grad()
                tasks.backward(net, step)
                if after is not None:
                    after(net)
            each.step(closure_of(net, each, step, after))
        tasks.assert_replicas_identical(nets[1])
    for left, right in zip(*map(tasks.values, nets), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


class Interrupted(Exception):
    """What a backward pass is ended by."""


def interrupted_backward(net, step, error, layer):
    """A backward pass that ends with an exception after some layers."""
    handle = net[layer].weight.register_hook(lambda gradient: raise_(error))
    with pytest.raises(type(error)):
        tasks.backward(net, step)
    handle.remove()


def raise_(error):
    raise error


@pytest.mark.fault("interrupted")
@pytest.mark.parametrize("options", [{}, {"transport": "exchange", "bucket_cap_mb": 1e-5}, {"overlap": False}], ids=str)
@pytest.mark.parametrize("kind", ["SignSGD", "Signum", "AdamW"])
@pytest.mark.parametrize("error", [Interrupted(), KeyboardInterrupt()], ids=["exception", "Ctrl-C"])
def test_the_loop_goes_on_after_backward_was_interrupted(error, kind, options):
    """On one rank, or on all at different layers; with zero_grad of the optimizer or of the model, or none."""
    plain = [tasks.model(), tasks.model()]
    optimizers = [wrap(plain_optimizer(kind, net.parameters()), net, **options) for net in plain]
    for step in range(8):
        for net, optimizer in zip(plain, optimizers, strict=True):
            optimizer.zero_grad()
            if optimizer is optimizers[1] and (RANK == LAST or step in (4, 5)):
                interrupted_backward(net, step, error, layer=(0, 3)[(RANK + step) % 2])
                if step % 3 == 0:
                    optimizer.zero_grad()
                    optimizer.zero_grad()
                else:
                    net.zero_grad()
                if step == 5:
                    interrupted_backward(net, step, error, layer=0)
                    net.zero_grad()
            tasks.backward(net, step)
            optimizer.step()
    assert_equal(tasks.values(plain[1]), tasks.values(plain[0]))  # the same batch gives the same votes
    tasks.assert_replicas_identical(plain[1])


@pytest.mark.ranks(3)  # one rank starts none
@pytest.mark.parametrize("when", ["before", "after"])
def test_ctrl_c_while_a_vote_is_being_started_loses_none(when):
    """It waits until the vote is on its way: one that the others know and this rank does not would be waited for."""
    nets = [tasks.model(), tasks.model()]
    options = {"transport": "exchange", "bucket_cap_mb": 1e-5}
    optimizers = [wrap(hvs.Signum(net.parameters(), 0.01), net, **options) for net in nets]
    train(nets[0], optimizers[0], range(3))
    collectives = optimizers[1]._votes.pipeline._collectives
    start, starts = collectives.start, []

    def start_and_press(request, name):
        starts.append(name)
        if when == "before":
            signal.raise_signal(signal.SIGINT)
        handle = start(request, name)
        if when == "after":
            signal.raise_signal(signal.SIGINT)
        return handle

    for step in range(3):
        optimizers[1].zero_grad()
        if RANK == LAST:
            collectives.start = start_and_press
            with pytest.raises(KeyboardInterrupt):
                tasks.backward(nets[1], step)
            collectives.start = start
            optimizers[1].zero_grad()
        tasks.backward(nets[1], step)
        optimizers[1].step()
    assert len(starts) == (3 if RANK == LAST else 0)
    assert_equal(tasks.values(nets[1]), tasks.values(nets[0]))


@pytest.mark.fault("interrupted")
@pytest.mark.parametrize("transport", ["auto", "exchange"])
def test_a_step_after_an_interrupted_backward_and_a_batch_that_is_left_out(transport):
    net = tasks.model()
    optimizer = wrap(hvs.Signum(net.parameters(), 0.01), net, transport=transport, bucket_cap_mb=1e-5)
    for step in range(4):
        optimizer.zero_grad()
        if step == 1 and RANK == LAST:
            interrupted_backward(net, step, Interrupted(), layer=3)  # what has come votes, and all else abstains
        elif step == 2:
            interrupted_backward(net, step, Interrupted(), layer=3 * (RANK % 2))
            continue
        else:
            tasks.backward(net, step)
        optimizer.step()
    train(net, optimizer, range(4, 6))


@pytest.mark.fault("zero-grad")
@pytest.mark.parametrize("kind", ["Signum", "SGD"])
@pytest.mark.parametrize("zero", ["model", "optimizer"])
def test_a_batch_that_is_left_out_without_overlap(zero, kind):
    net = tasks.model()
    optimizer = wrap(plain_optimizer(kind, net.parameters()), net, overlap=False)
    for step in range(4):
        (net if zero == "model" else optimizer).zero_grad()
        tasks.backward(net, step)
        if step % 2 == 0:  # a loss that is NaN on some rank, say
            continue
        optimizer.step()
    tasks.assert_replicas_identical(net)


@pytest.mark.fault("zero-grad")
@pytest.mark.parametrize("remedy", ["none", "freeze", "inputs", "overlap"])
def test_a_generators_loss_that_flows_through_the_discriminator(remedy):
    """It would vote on the discriminator with the generator's loss: one sentence, whose remedies all work."""
    torch.manual_seed(0)
    generator, discriminator = torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)
    of_generator = wrap(hvs.Signum(generator.parameters(), 0.01), generator)
    options = {"overlap": False} if remedy == "overlap" else {}
    of_discriminator = wrap(hvs.Signum(discriminator.parameters(), 0.01), discriminator, **options)
    expected = pytest.raises(AssertionError, match="generator's does through the discriminator")
    random = torch.Generator().manual_seed(RANK)
    for step in range(3):
        fake = generator(torch.randn(5, 3, generator=random))
        with expected if remedy == "none" and step else contextlib.nullcontext():
            of_discriminator.zero_grad()
            (discriminator(fake.detach()).mean() - discriminator(torch.randn(5, 4, generator=random)).mean()).backward()
            of_discriminator.step()
        of_generator.zero_grad()
        if remedy == "none" and step:
            break
        if remedy == "freeze":
            discriminator.requires_grad_(False)
        loss = -discriminator(fake).mean()
        loss.backward(inputs=list(generator.parameters()) if remedy == "inputs" else None)
        discriminator.requires_grad_(True)
        of_generator.step()
    for net in (generator, discriminator):
        tasks.assert_replicas_identical(net)
