"""Votes for DistributedDataParallel over Gloo, beside Horovod's: the same bits, and what DDP's users do."""

import contextlib
import copy
import time
import warnings
import weakref

import horovod.torch as hvd
import numpy as np
import oracle
import pytest
import torch
import torch.distributed as dist
from kernel_sets import use_kernels
from ranks import RANK, SIZE
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_wrapper
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_pre_hook

import horovod_sign.torch as hvs
from horovod_sign import ddp, rules

RANKS = (2,)  # the fewest that vote, where votes tie; odd where a test says so
pytestmark = pytest.mark.fault("ddp")


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory):
    from mpi4py import MPI

    path = MPI.COMM_WORLD.bcast(str(tmp_path_factory.mktemp("store") / "store"))
    dist.init_process_group("gloo", store=dist.FileStore(path, SIZE), rank=RANK, world_size=SIZE)
    yield dist.group.WORLD
    dist.destroy_process_group()


class Net(torch.nn.Module):
    """Layers of which the second is left out by some ranks."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(3)
        self.first = torch.nn.Linear(9, 40, dtype=dtype)
        self.second = torch.nn.Linear(40, 40, dtype=dtype)
        self.last = torch.nn.Linear(40, 3, dtype=dtype)

    def forward(self, x, short: bool = False):
        x = torch.relu(self.first(x))
        return self.last(x if short else torch.relu(self.second(x)))


def inputs(step: int, rank: int = RANK, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(5, 9, generator=torch.Generator().manual_seed(100 * step + rank)).to(dtype)


def voted(net, rule=None, bucket_cap_mb=0.002, hook=ddp.vote_hook, **options):
    """The net in a DDP that votes, and its state. Several buckets, but of the smallest nets."""
    of_ddp = {k: options.pop(k) for k in list(options) if k not in ("abstain", "transport", "grad_scaler")}
    model = DistributedDataParallel(net, bucket_cap_mb=bucket_cap_mb, **of_ddp)
    state = ddp.VoteState(of_ddp.get("process_group"), rule, **options)
    model.register_comm_hook(state, hook)
    return model, state


def backward(model, step: int, **options):
    model(inputs(step), **options).square().sum().backward()


def gradients_of_all(net, step: int, ranks=range(SIZE)) -> list[list[np.ndarray]]:
    """The gradients of each parameter on each of these ranks, by themselves."""
    found = []
    for rank in ranks:
        loss = net(inputs(step, rank)).square().sum()
        found.append([g.numpy() for g in torch.autograd.grad(loss, list(net.parameters()))])
    return [list(of_all) for of_all in zip(*found, strict=True)]


def values(net) -> bytes:
    return b"".join(p.detach().numpy().tobytes() for p in net.parameters())


def assert_votes(net, of_all, abstain: bool = True):
    for p, all_g in zip(net.parameters(), of_all, strict=True):
        np.testing.assert_array_equal(p.grad.double().numpy(), oracle.vote(all_g, abstain))


class Largest(rules.Rule):
    """A rule of a user's: of momenta, the upper half by magnitude votes."""

    states = ("velocity",)

    def ballot(self, gradient, velocity):
        velocity = 0.5 * velocity + gradient
        return torch.where(velocity.abs() >= velocity.abs().median(), velocity, 0.0), velocity


RULES = {
    "signsgd": (rules.signsgd(), hvs.Compression.signsgd()),
    "signum": (rules.signum(0.9), hvs.Compression.signum(0.9)),
    "lion": (rules.lion(), hvs.Compression.of(rules.lion())),
    "a rule of one's own": (hvs.Compression.of(Largest()), hvs.Compression.of(Largest())),
    "warm-up": (rules.signum(0.5, warmup=True), hvs.Compression.signum(0.5, warmup=True)),
}


@pytest.mark.ranks(3)  # odd
@pytest.mark.parametrize("kernels", ["native", "operations"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parameters_equal_those_of_horovods_votes(rule, dtype, kernels, monkeypatch):
    """Bit for bit; one rank leaves a layer out in some steps, which then abstains there and keeps its momentum."""
    use_kernels(monkeypatch, kernels)
    mine, theirs = Net(dtype), Net(dtype)
    model, state = voted(mine, RULES[rule][0], find_unused_parameters=True)
    optimizer = torch.optim.SGD(mine.parameters(), 0.01, momentum=0.9, weight_decay=0.1)
    other = hvs.DistributedOptimizer(
        torch.optim.SGD(theirs.parameters(), 0.01, momentum=0.9, weight_decay=0.1),
        named_parameters=theirs.named_parameters(),
        compression=RULES[rule][1],
    )
    for step in range(4):
        short = RANK == SIZE - 1 and step in (1, 2)
        optimizer.zero_grad()
        other.zero_grad()
        model(inputs(step, dtype=dtype), short=short).square().sum().backward()
        theirs(inputs(step, dtype=dtype), short=short).square().sum().backward()
        other.synchronize()
        for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)
        with other.skip_synchronize():
            other.step()
        optimizer.step()
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)
    mine_counts, theirs_counts = state.vote_statistics(), other.vote_statistics()
    assert mine_counts[:8] == theirs_counts[:8]


def _also_sent(gradient):
    ones = torch.ones(3)
    dist.all_reduce(ones)
    assert ones.tolist() == [SIZE] * 3


OPTIONS = {
    "exchange": {"transport": "exchange"},
    "counts": {"transport": "counts"},
    "one bit": {"abstain": False, "transport": "exchange"},
    "one bit, counts": {"abstain": False, "transport": "counts"},
    "views": {"gradient_as_bucket_view": True},
    "static graph": {"static_graph": True},
    "one bucket": {"bucket_cap_mb": 25},
    "in float16": {"hook": fp16_compress_wrapper(ddp.vote_hook)},
}


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("options", OPTIONS)
def test_votes_on_buckets(options):
    """Buckets are made anew after the first pass. One pass adds to what another, in no_sync, has left."""
    net = Net()
    model, state = voted(net, **OPTIONS[options])
    for p in net.parameters():
        p.register_hook(_also_sent)  # as SyncBatchNorm does; votes are beside it
    for step in range(3):
        net.zero_grad()
        of_all = gradients_of_all(net, step)
        if step == 2:
            with model.no_sync():
                backward(model, 7)
            of_all = [
                [a + b for a, b in zip(*both, strict=True)]
                for both in zip(of_all, gradients_of_all(net, 7), strict=True)
            ]
        backward(model, step)
        assert_votes(net, of_all, OPTIONS[options].get("abstain", True))
    counts = state.vote_statistics()
    assert (counts.step, counts.coordinates) == (3, sum(p.numel() for p in net.parameters()))
    assert 0 < state.bytes_sent == counts.bytes_sent


@pytest.mark.ranks(3)  # two that go on and then one alone
@pytest.mark.parametrize("rule", ["signsgd", "signum"])
@pytest.mark.parametrize("abstain", [True, False])
def test_ranks_without_data_abstain_in_join(rule, abstain):
    """Rank r has r + 1 batches: in the end the last votes alone. Who has none keeps its momentum as it was."""
    net = Net()
    model, state = voted(net, RULES[rule][0], abstain=abstain)
    kept = []
    with Join([model]):
        for step in range(RANK + 1):
            net.zero_grad()
            of_all = gradients_of_all(net, step, range(step, SIZE))
            backward(model, step)
            if rule == "signsgd":
                assert_votes(net, of_all, abstain)
            kept = {name: {k: v.clone() for k, v in s.items()} for name, s in state.state_dict(net)["states"].items()}
    after = state.state_dict(model)["states"]
    assert all(torch.equal(after[name][k], v) for name, s in kept.items() for k, v in s.items())
    assert ("momentum_buffer" in after["last.weight"]) == (rule == "signum")


@pytest.mark.ranks(3)  # two do not
def test_an_overflow_on_one_rank_is_one_of_all():
    """As in DDP without votes: no rank steps, and scales stay the same."""
    net, plain = Net(), Net()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)  # it doubles in each step
    model, _ = voted(net, rules.signum(0.5), grad_scaler=scaler)
    unscaled, _ = voted(plain, rules.signum(0.5))
    optimizer, other = (torch.optim.SGD(each.parameters(), 0.01) for each in (net, plain))
    for step in range(4):
        overflow = torch.tensor(np.inf if step == 2 and RANK == SIZE - 1 else 1.0)
        before = values(net)
        optimizer.zero_grad()
        scaler.scale(model(inputs(step)).square().sum() * overflow).backward()
        scaler.step(optimizer)
        scaler.update()
        if step == 2:
            assert values(net) == before
            break
        other.zero_grad()
        backward(unscaled, step)
        other.step()
        assert values(net) == values(plain)
    assert scaler.get_scale() == 2048.0


def test_a_scaler_that_votes_do_not_know_is_refused_before_the_step():
    net, scaler = Net(), torch.amp.GradScaler("cpu")
    model, _ = voted(net)
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    before = values(net)
    scaler.scale(model(inputs(0)).sum()).backward()
    with pytest.raises(RuntimeError, match=r"give ddp\.VoteState grad_scaler=scaler"):
        scaler.step(optimizer)
    assert values(net) == before
    net = Net()
    model, _ = voted(net, grad_scaler=scaler)
    scaler.scale(model(inputs(0)).sum()).backward()
    with pytest.raises(RuntimeError, match=r"call scaler.step\(optimizer\) instead"):
        torch.optim.SGD(net.parameters(), 1.0).step()
    uneven = torch.amp.GradScaler("cpu", init_scale=1000.0)
    model, _ = voted(Net(), grad_scaler=uneven)
    with pytest.raises(ValueError, match=r"must be a power of two.*but is 1000.0"):
        uneven.scale(model(inputs(0)).sum()).backward()


def test_a_state_that_goes_while_an_optimizer_steps():
    """The garbage collector comes at any time: torch must not find its hooks changed."""
    states = []
    p = torch.nn.Parameter(torch.zeros(3))
    handle = register_optimizer_step_pre_hook(lambda *_: states.clear())
    states.append(ddp.VoteState())
    gone = weakref.ref(states[0])
    p.grad = torch.ones(3)
    torch.optim.SGD([p], 1.0).step()
    handle.remove()
    assert gone() is None and p.tolist() == [-1.0] * 3


MISTAKES = {
    "options that differ": (
        {"abstain": RANK > 0},
        ValueError,
        "argument abstain is False on rank 0 and True on ranks? 1",
    ),
    "a rule of one rank": (
        {"rule": rules.signum(0.5 + 0.1 * RANK)},
        ValueError,
        r"argument rule is .*0\.5.* on rank 0 and .*0\.6.* on rank 1",
    ),
    "a name": ({"transport": "exchange" if RANK else "direct"}, ValueError, "transport must be one of 'auto'"),
    "no rule": ({"rule": "signum"}, TypeError, r"derived from hvs\.Rule, got 'signum'"),
    "an optimizer for a scaler": ({"grad_scaler": RANK or None}, TypeError, "must be a torch.amp.GradScaler, got int"),
    "no group": ({"process_group": "gloo"}, TypeError, "process_group must be a torch.distributed.ProcessGroup"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence_on_all_ranks(mistake):
    options, kind, message = MISTAKES[mistake]
    with pytest.raises(kind, match=message):
        ddp.VoteState(**options)


def test_gradients_that_cannot_be_voted_on_are_refused():
    model, _ = voted(torch.nn.Embedding(5, 3, sparse=True))
    with pytest.raises(TypeError, match="gradient bucket 0 is a tensor of the sparse_coo layout"):
        model(torch.tensor([1])).sum().backward()
    model, _ = voted(torch.nn.Linear(9, 3, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"a parameter of shape \(3, 9\) is of dtype complex64"):
        model(inputs(0, dtype=torch.complex64)).abs().sum().backward()


def test_each_model_has_a_state():
    """Two models whose passes alternate, and one pass through both; a state for two is refused."""
    nets = Net(), Net()
    models, states = zip(*(voted(net) for net in nets), strict=True)
    for step in range(2):
        for net, model in zip(nets, models, strict=True):
            net.zero_grad()
            of_all = gradients_of_all(net, step)
            backward(model, step)
            assert_votes(net, of_all)
    for net in nets:
        net.zero_grad()
    sum(model(inputs(0)).square().sum() for model in models).backward()
    for net in nets:
        assert_votes(net, of_all := gradients_of_all(net, 0))
    model = DistributedDataParallel(Net())
    model.register_comm_hook(states[0], ddp.vote_hook)
    with pytest.raises(ValueError, match="votes for another model already"):
        backward(model, 0)


def test_momenta_are_saved_and_loaded(monkeypatch):
    """Bit for bit by name, and however DDP makes its buckets; on other ranks their mean; of another model, nothing.

    Those of one parameter at a time are on a device: copies on the host are then other tensors, as here.
    """
    net = Net()
    model, state = voted(net, rules.signum(0.9, warmup=True))
    backward(model, 0)
    on_device, alive, all_gather = [], [], dist.all_gather

    def watched(pieces, tensor, **options):
        if pieces[0]._base is not None:
            until = time.monotonic() + 2  # for a moment Gloo's own thread may have them too
            while any(each() is not None for each in on_device) and time.monotonic() < until:
                time.sleep(0.01)
            alive.append(sum(each() is not None for each in on_device))
            on_device.append(weakref.ref(pieces[0]._base))
        return all_gather(pieces, tensor, **options)

    with monkeypatch.context() as watching:
        watching.setattr(dist, "all_gather", watched)
        watching.setattr(torch.Tensor, "cpu", torch.Tensor.clone)
        saved, everything = copy.deepcopy(state.state_dict(model)), state.gather_state_dict(net)
    assert len(alive) > 1
    assert not any(alive)
    assert (everything is None) == (RANK != 0)
    everything = hvd.broadcast_object(everything, 0, name="ddp.everything")
    net.zero_grad()
    backward(model, 1)
    wanted = _momenta(state, net)
    for loaded in (saved, everything):
        again = Net()
        model, other = voted(again, rules.signum(0.9, warmup=True), bucket_cap_mb=25)
        other.load_state_dict(loaded, again)
        backward(model, 1)
        assert _momenta(other, again) == wanted
        assert other.states[again.last.bias]["step"] == 2
    mean = {**everything["horovod_sign_momenta"]}
    halves = {name: torch.stack([torch.zeros(m.shape[1:]), 2 * torch.ones(m.shape[1:]), torch.ones(m.shape[1:])] * 2)
              for name, m in mean["momenta"].items()}  # fmt: skip
    other.load_state_dict({**everything, "horovod_sign_momenta": {"ranks": 6, "momenta": halves}}, model)
    assert all((s["momentum_buffer"] == 1).all() for s in other.states.values())
    with pytest.raises(ValueError, match=r"of another model: momentum_buffer of 0\.weight has shape"):
        other.load_state_dict({"states": {"0.weight": {"momentum_buffer": torch.zeros(3)}}}, net)
    with pytest.raises(ValueError, match=r"none of ddp\.VoteState"):
        other.load_state_dict(again.state_dict(), net)
    with pytest.raises(TypeError, match=r"save state.gather_state_dict\(model\)"):
        torch.save(state, "/dev/null")


def test_momenta_of_a_layer_that_a_rank_has_never_used_are_gathered_too():
    """Of that rank they are zeros, as those of a rank that has not begun."""
    net = Net()
    model, state = voted(net, rules.signum(0.9), find_unused_parameters=True)
    for step in range(2):
        net.zero_grad()
        backward(model, step, short=RANK == SIZE - 1)
    mine = state.state_dict(net)["states"]
    assert ("momentum_buffer" in mine["second.weight"]) == (RANK < SIZE - 1)
    saved = hvd.broadcast_object(state.gather_state_dict(net), 0, name="ddp.unused")
    assert len(saved["horovod_sign_momenta"]["momenta"]) == len(list(net.parameters()))
    state.load_state_dict(saved, net)
    for name, p in net.named_parameters():
        kept = mine[name].get("momentum_buffer", torch.zeros_like(p))
        assert torch.equal(state.states[p]["momentum_buffer"], kept)


def test_frozen_layers_are_not_gathered_and_not_by_one_rank_alone():
    """Also those that were loaded. Where a rank has frozen another, all are told, and nobody waits."""
    net = Net()
    model, state = voted(net, rules.signum(0.9))
    backward(model, 0)
    net.second.requires_grad_(False)
    saved = hvd.broadcast_object(state.gather_state_dict(net), 0, name="ddp.frozen")
    trained = {f"{name}.momentum_buffer" for name, p in net.named_parameters() if p.requires_grad}
    assert saved["horovod_sign_momenta"]["momenta"].keys() == trained
    state.load_state_dict(saved, net)
    again = hvd.broadcast_object(state.gather_state_dict(net), 0, name="ddp.frozen.again")
    for key, momenta in again["horovod_sign_momenta"]["momenta"].items():
        assert torch.equal(momenta, saved["horovod_sign_momenta"]["momenta"][key])
    net.second.requires_grad_(RANK == 0)
    with pytest.raises(ValueError, match=r"all ranks must .* momentum_buffer of second.weight .* on rank"):
        state.gather_state_dict(net)


class Fails(rules.Rule):
    """On one rank, of one parameter, as long as `broken`."""

    states = ("m",)
    broken = True

    def ballot(self, gradient, m):
        if Fails.broken and RANK == SIZE - 1 and gradient.shape == (40, 40):
            raise ZeroDivisionError("of the user's own")
        return gradient, m


def test_a_rule_that_fails_on_one_rank_ends_its_backward_alone():
    """It abstains in that pass, in which the others have their votes, and the next one is as any other."""
    net = Net()
    model, _ = voted(net, Fails())
    of_all = gradients_of_all(net, 0)
    if RANK == SIZE - 1:
        with pytest.raises(RuntimeError, match=r"Fails\.ballot raised ZeroDivisionError: of the user's own"):
            backward(model, 0)
    else:
        backward(model, 0)
        of_all[2] = [*of_all[2][:-1], np.zeros_like(of_all[2][-1])]
        assert_votes(net, of_all)
    Fails.broken = False
    net.zero_grad()
    of_all = gradients_of_all(net, 1)
    backward(model, 1)
    assert_votes(net, of_all)


def _momenta(state, net) -> dict[str, bytes]:
    return {name: s["momentum_buffer"].numpy().tobytes() for name, s in state.state_dict(net)["states"].items()}


@pytest.mark.ranks(3)  # a group of two of them
def test_groups_of_some_ranks():
    """Each rank alone, and all but the last: their votes are of nobody else."""
    alone = [dist.new_group([rank]) for rank in range(SIZE)]
    some = dist.new_group(list(range(SIZE - 1)))
    groups = [(alone[RANK], [RANK])] + ([(some, range(SIZE - 1))] if RANK < SIZE - 1 else [])
    for group, ranks in groups:
        net = Net()
        model, state = voted(net, process_group=group)
        of_all = gradients_of_all(net, 0, ranks)
        backward(model, 0)
        assert_votes(net, of_all)
        assert (state.bytes_sent > 0) == (len(ranks) > 1)
    if RANK == SIZE - 1:
        with pytest.raises(ValueError, match=f"rank {RANK} is not in the process group"):
            ddp.VoteState(some)
    dist.barrier()


class Product(torch.nn.Module):
    """Its gradient is its input."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2, 4))

    def forward(self, x):
        return (self.weight * x).sum()


def test_nan_abstain_and_are_told_of_once():
    model, state = voted(Product())
    x = -torch.ones(2, 4)
    x[0] = np.nan if RANK == 0 else -1.0
    with (
        pytest.warns(RuntimeWarning, match=r"gradient of parameter of shape \(2, 4\) is NaN in 4 of 8 coordinates")
        if RANK == 0
        else no_warning()
    ):
        model(x).backward()
    np.testing.assert_array_equal(model.module.weight.grad.numpy(), np.full((2, 4), -1))
    model.zero_grad()
    with no_warning():
        model(x).backward()
    assert state.vote_statistics().total_nans == (8 if RANK == 0 else 0)


@pytest.mark.parametrize("clears", ["no", "sets to None", "sets to 0"])
def test_gradients_that_are_added_to_votes_are_told_of(clears):
    model, _ = voted(Net(), static_graph=clears == "sets to 0")
    backward(model, 0)
    if clears != "no":
        model.zero_grad(set_to_none=clears == "sets to None")
    with pytest.warns(RuntimeWarning, match="added gradients to the votes") if clears == "no" else no_warning():
        backward(model, 1)
    with no_warning():
        if clears != "no":  # once is enough
            model.zero_grad(set_to_none=clears == "sets to None")
        backward(model, 2)


@contextlib.contextmanager
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
