"""What the kernels are told of a tensor is true when they are called, whatever was done to it since it was wrapped.

Coordinates are told apart by their index, in the order in which they lay in memory when the optimizer was wrapped, on
all ranks alike. A tensor that lies otherwise by now, or whose memory is not its value, is copied into that order.
"""

import horovod.torch as hvd
import numpy as np
import pytest
import simulation
import torch
from kernel_sets import use_kernels
from mpi4py import MPI
from ranks import LAST, RANK, SIZE

import horovod_sign.torch as hvs

RANKS = (2,)  # one rank lies otherwise in memory, and one does not

pytestmark = [pytest.mark.fault("step-fails"), pytest.mark.fault("memory")]
SHAPE = (4, 2, 3, 3)


def storage_cut(nbytes):
    def cut(x):
        x = x.clone()
        x.untyped_storage().resize_(nbytes)
        return x

    return cut


def with_holes(x):
    return torch.zeros(*x.shape, 2, dtype=x.dtype)[..., 1].copy_(x)


def transposed(x):
    return torch.empty_like(x.transpose(0, -1), memory_format=torch.contiguous_format).transpose(0, -1).copy_(x)


# The same value in other memory.
LAYOUTS = {
    "elsewhere": lambda x: torch.cat([torch.ones(7, dtype=x.dtype), x.flatten()])[7:].view(x.shape),
    "transposed": transposed,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "with holes": with_holes,
    "negated": lambda x: torch._neg_view(-x),
    "negated, with holes": lambda x: torch._neg_view(with_holes(-x)),
}


def gradient(step: int, rank: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(100 * step + rank))


class Training:
    """Two parameters with gradients of each rank's own, of Signum or Adam, beside the same by NumPy or plain torch."""

    def __init__(self, kind="Signum", overlap=True, transport="exchange", **options):
        self.first, self.p = (torch.nn.Parameter(gradient(99, i)) for i in range(2))
        self.kind = kind
        options |= {"compression": hvs.Compression.signum(0.9)} if kind == "Adam" else {}
        self.optimizer = hvs.DistributedOptimizer(
            self._make(self.parameters), overlap=overlap, transport=transport, bucket_cap_mb=1e-5, **options
        )
        self.workers = simulation.Workers([np.zeros(SHAPE)] * 2, SIZE, simulation.signum(0.9))
        self.expected = [torch.nn.Parameter(p.detach().clone()) for p in self.parameters]
        self.reference = torch.optim.Adam(self.expected, 0.1) if kind == "Adam" else None

    @property
    def parameters(self):
        return [self.first, self.p]

    def _make(self, parameters):
        return hvs.Signum(parameters, 0.1) if self.kind == "Signum" else torch.optim.Adam(parameters, 0.1)

    def backward(self, step):
        self.optimizer.zero_grad()
        sum((p * gradient(step, RANK + 10 * i)).sum() for i, p in enumerate(self.parameters)).backward()

    def step(self, step, edit=lambda: None):
        """A step; `edit` is done between backward and `step`."""
        self.backward(step)
        edit()
        self.optimizer.step()
        votes = self.workers.votes([[gradient(step, r + 10 * i).numpy() for i in range(2)] for r in range(SIZE)])
        for p, vote in zip(self.expected, votes, strict=True):
            p.grad = torch.from_numpy(vote).float()
        if self.reference is not None:
            self.reference.step()
        else:
            for p in self.expected:
                p.data -= 0.1 * p.grad

    def check(self):
        for p, expected in zip(self.parameters, self.expected, strict=True):
            np.testing.assert_allclose(p.detach().resolve_neg().numpy(), expected.detach().numpy(), rtol=1e-5)
        values = [p.detach().clone().contiguous().numpy().tobytes() for p in self.parameters]
        assert len(set(MPI.COMM_WORLD.allgather(b"".join(values)))) == 1, "the replicas differ"

    def momentum(self, p):
        return self.optimizer.vote_state(p)["momentum_buffer"]


@pytest.fixture
def ways(monkeypatch):
    """Kinds of optimizers by the kernels, and by what tensors on other devices take."""

    def each():
        for kernels in ("native", "operations"):
            use_kernels(monkeypatch, kernels)
            yield from ("Signum", "Adam")

    return each


@pytest.mark.quick
@pytest.mark.parametrize("who", ["all", "one"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parameters_that_lie_otherwise_by_now(layout, who, ways):
    for kind in ways():
        training = Training(kind, transport={"Signum": "exchange", "Adam": "counts"}[kind])
        training.step(0)

        def move(training=training):
            if who == "all" or RANK == LAST:
                training.p.data = LAYOUTS[layout](training.p.data)

        move()
        training.step(1)
        training.p.data = training.p.data.clone(memory_format=torch.contiguous_format)
        training.step(2, edit=move)
        training.check()


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("layout", [*LAYOUTS, "a subclass", "a wrapper"])
def test_gradients_that_lie_otherwise(layout, overlap, ways):
    from torch.testing._internal.two_tensor import TwoTensor

    layouts = {
        **LAYOUTS,
        "a subclass": lambda x: x.as_subclass(type("Named", (torch.Tensor,), {})),
        "a wrapper": lambda x: TwoTensor(x, x),
    }
    for kind in ways():
        training = Training(kind, overlap)

        def replace(training=training):
            if RANK == LAST:
                training.p.grad = layouts[layout](training.p.grad)

        if overlap:  # seen by the hook of the vote, which is called after those made before
            handle = training.p.register_hook(
                layouts[layout] if RANK == LAST and layout != "a wrapper" else lambda g: g
            )
            training.step(0)
            handle.remove()
        else:
            training.step(0, edit=replace)
        training.step(1)
        training.check()


def test_gradients_without_memory_are_zeros(ways):
    training = Training(overlap=False)
    training.backward(0)
    for p in training.parameters:
        p.grad = torch._efficientzerotensor(SHAPE)
    before = [p.detach().clone() for p in training.parameters]
    training.optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(training.parameters, before, strict=True))
    assert training.optimizer.vote_statistics().abstained == 1.0


@pytest.mark.parametrize("who", ["all", "one"])
@pytest.mark.parametrize("how", [*LAYOUTS, "float64", "float16", "expanded", "with a graph", "gone"])
def test_momenta_that_were_replaced(how, who, ways):
    replacements = {
        **LAYOUTS,
        "float64": lambda m: m.double(),
        "float16": lambda m: m.half(),
        "expanded": lambda m: torch.tensor(0.25).expand(m.shape),
        "with a graph": lambda m: m.clone().requires_grad_(),
    }
    for kind in ways():
        training = Training(kind)
        training.step(0)
        state = training.optimizer.vote_state(training.p)
        if who == "all" or RANK == LAST:
            if how == "gone":
                del state["momentum_buffer"]
            else:
                state["momentum_buffer"] = replacements[how](state["momentum_buffer"])
        new = state["momentum_buffer"].detach().float() if "momentum_buffer" in state else torch.zeros(SHAPE)
        for rank, m in enumerate(MPI.COMM_WORLD.allgather(new.contiguous().clone().numpy())):
            training.workers.m[rank][1][...] = m
        training.step(1)
        training.step(2)
        training.check()
        assert training.momentum(training.p).dtype == torch.float32


REFUSED = {
    "smaller": (lambda x: x[:2].clone(), r"had 72 coordinates.* now has 36"),
    "larger": (lambda x: torch.cat([x, x]), r"had 72 coordinates.* now has 144"),
    "of another shape": (lambda x: x.clone().view(2, 4, 3, 3), r"shape \(4, 2, 3, 3\).* now has .*\(2, 4, 3, 3\)"),
    "expanded": (lambda x: x[:1].clone().expand(SHAPE), "overlap"),
    "without storage": (storage_cut(0), "no memory"),
    "with too little storage": (storage_cut(40), "no memory"),
}


@pytest.mark.parametrize("when", ["before backward", "after backward"])
@pytest.mark.parametrize("what", REFUSED)
def test_parameters_that_cannot_be_stepped_are_one_sentence(what, when, ways):
    for kind in ways():
        refuse(what, kind, when)


def refuse(what, kind, when):
    training = Training(kind)
    training.step(0)
    change, words = REFUSED[what]
    before = training.first.detach().clone()
    if when == "after backward":
        training.backward(1)
    training.p.data = change(training.p.data)
    with pytest.raises(RuntimeError, match=f"parameter .*{words}"):
        if when == "before backward":
            training.optimizer.zero_grad()
            (training.first.sum() + (training.p.sum() if "storage" not in what else 0)).backward()
        training.optimizer.step()
    assert torch.equal(training.first, before)


@pytest.mark.parametrize("overlap", [True, False])
def test_gradients_that_cannot_be_read_are_one_sentence(overlap, ways):
    for kind, change in ((kind, cut) for kind in ways() for cut in (storage_cut(0), storage_cut(40))):
        training = Training(kind, overlap)
        before = training.first.detach().clone()
        training.optimizer.zero_grad()
        if overlap:
            training.p.register_hook(change)
        with pytest.raises(RuntimeError, match=r"gradient of parameter .* no memory"):
            (training.p.square().sum()).backward()
            if not overlap:
                training.p.grad = change(training.p.grad)
            training.optimizer.step()
        assert torch.equal(training.first, before)


@pytest.mark.parametrize("kind", ["Signum", "Adam"])
@pytest.mark.parametrize(
    "momentum", [torch.zeros(3), torch.zeros(4, 2, 9), None, 0.0, storage_cut(40)(torch.ones(SHAPE))]
)
def test_momenta_that_do_not_fit_are_one_sentence(kind, momentum):
    training = Training(kind, overlap=False)
    training.step(0)
    before = training.first.detach().clone()
    training.optimizer.vote_state(training.p)["momentum_buffer"] = momentum
    training.backward(1)
    with pytest.raises(RuntimeError, match=r"momentum of parameter .*shape \(4, 2, 3, 3\)|momentum of .* no memory"):
        training.optimizer.step()
    assert torch.equal(training.first, before)


def test_what_has_no_memory_of_its_own_is_refused_when_wrapped():
    from torch.testing._internal.two_tensor import TwoTensor

    ones = torch.ones(3)
    odd = {
        "keeps its values elsewhere": torch.nn.Parameter(TwoTensor(ones, ones)),
        "no memory": torch.nn.Parameter(storage_cut(4)(ones)),
        "not initialised": torch.nn.LazyLinear(3).weight,
        "sparse": torch.nn.Parameter(torch.eye(3).to_sparse()),
        "holes or overlaps": torch.nn.Parameter(with_holes(ones)),
    }
    for words, p in odd.items():
        mine = p if RANK == LAST else torch.nn.Parameter(torch.ones(3))
        with pytest.raises((TypeError, ValueError), match=words):
            hvs.DistributedOptimizer(torch.optim.SGD([mine], 0.1))


def test_compression_in_the_stock_wrapper_sees_values():
    """A gradient whose memory is not its value: negated, or without memory."""
    compression = hvs.Compression.signsgd()
    for x, expected in [(torch._neg_view(torch.ones(3)), -1), (torch._efficientzerotensor(3), 0)]:
        words, context = compression.compress(x)
        assert compression.decompress(words, context).tolist() == [expected] * 3


def cut_parameter(training):
    training.p.data = training.p.data[:2].clone()


def expand_parameter(training):
    training.p.data = training.p.data[:1].clone().expand(SHAPE)


def cut_momentum(training):
    training.optimizer.vote_state(training.p)["momentum_buffer"] = torch.zeros(3)


def cut_gradient(training):
    training.p.grad = storage_cut(40)(torch.ones(SHAPE))


@pytest.mark.parametrize("transport", ["auto", "exchange", "counts"])
@pytest.mark.parametrize("break_one", [cut_parameter, expand_parameter, cut_momentum, cut_gradient])
def test_what_one_rank_alone_cannot_use_all_are_told(break_one, transport):
    """By their ballots: nobody waits for that rank, nothing has moved, and no vote is left on its way."""
    for kind in ("Signum", "Adam"):
        late = break_one is cut_gradient
        training = Training(kind, overlap=not late, transport=transport)
        training.step(0)
        before = training.first.detach().clone()
        if RANK == LAST and not late:
            break_one(training)
        words = "(parameter|momentum).*" if RANK == LAST else f"rank {LAST} cannot vote: .*(parameter|momentum).*"
        with pytest.raises((RuntimeError, ValueError), match=words):
            training.optimizer.zero_grad()
            (training.first.sum() + training.p.sum()).backward()
            if RANK == LAST and late:
                break_one(training)
            training.optimizer.step()
        assert torch.equal(training.first, before)
        assert not training.optimizer._votes.pipeline.started
    # Horovod dies of an allgather that others have left on their way when a rank joins.
    hvd.join()


@pytest.mark.parametrize("break_one", [cut_parameter, expand_parameter, cut_momentum, cut_gradient])
def test_votes_of_nodes_are_told_before_a_step_or_in_the_next(break_one):
    """What cannot be read is found while ranks of a node wait for its mean; then it counts as zeros in this step."""
    training = Training("Signum", overlap=break_one is not cut_gradient, hierarchical=True)
    words = "(parameter|momentum).*" if RANK == LAST else f"rank {LAST} cannot vote: .*(parameter|momentum).*"

    def step(broken=False):
        training.optimizer.zero_grad()
        (training.first.sum() + training.p.sum()).backward()
        if broken and RANK == LAST:
            break_one(training)
        training.optimizer.step()

    step()
    if break_one is not cut_gradient and RANK == LAST:
        break_one(training)
    before = training.first.detach().clone()
    with pytest.raises((RuntimeError, ValueError), match=words):
        step(broken=break_one is cut_gradient)
        before = training.first.detach().clone()
        step()
    assert torch.equal(training.first, before)
    hvd.join()
