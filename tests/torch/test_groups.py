"""Parameter groups that are changed in place after wrapping: parameters replaced, taken out, put in, moved.

As layers that grow, and points that are added and pruned, do it: `param_groups` and `state` are the user's to change.
"""

import gc
import weakref

import numpy as np
import pytest
import torch
from mpi4py import MPI
from ranks import RANK, SIZE

import horovod_sign.torch as hvs
from horovod_sign.torch.presence import Presence

RANKS = (2,)  # one that differs from another

pytestmark = pytest.mark.fault("groups-changed")

LR = 0.125


class Points:
    """Parameters, each in a group of its own, trained on gradients that are drawn; and the same steps by NumPy.

    Args:
        kind: the optimizer that is wrapped.
        named: whether the wrapper is told names.
        options: of the wrapper.
    """

    def __init__(self, kind, sizes=(40, 70, 3), named=True, **options):
        self.parameters = [torch.nn.Parameter(torch.full((n,), 1.0 + i)) for i, n in enumerate(sizes)]
        groups = [{"params": [p], "lr": LR * (1 + i)} for i, p in enumerate(self.parameters)]
        self.kind = kind
        if kind == "Adam":
            optimizer = torch.optim.Adam(groups, betas=(0.5, 0.5))
        else:
            optimizer = hvs.Signum(groups, LR, momentum=0.5) if kind == "Signum" else torch.optim.SGD(groups, LR)
        names = [(f"points{i}", p) for i, p in enumerate(self.parameters)]
        self.optimizer = hvs.DistributedOptimizer(optimizer, names if named else None, bucket_cap_mb=3e-4, **options)
        self.momenta = {p: np.zeros((SIZE, p.numel()), np.float32) for p in self.parameters}
        self.expected = {p: torch.nn.Parameter(p.detach().clone()) for p in self.parameters}
        self.reference = torch.optim.Adam([{"params": [q]} for q in self.expected.values()], betas=(0.5, 0.5))
        self.number = 0

    def gradients(self, p) -> np.ndarray:
        """Of all ranks. Many are zero."""
        generator = np.random.default_rng([self.number, self.index(p)])
        return generator.integers(-1, 2, (SIZE, p.numel())).astype(np.float32)

    def index(self, p):
        return next(i for i, q in enumerate(self.parameters) if q is p)

    def step(self, change=lambda: None, too_late=False):
        """One step. `change` is called between backward and step, perhaps too late for what it adds to be voted on."""
        self.optimizer.zero_grad()
        sum((p * torch.from_numpy(self.gradients(p)[RANK])).sum() for p in self.parameters).backward()
        voted = {p: self.gradients(p) for p in self.parameters}
        if too_late:
            voted = {p: self.voted_on(p, g) for p, g in voted.items()}
        change()
        self.optimizer.step()
        self.number += 1
        for p in self.parameters:
            if p in voted:
                self.expect(p, voted[p] if too_late else self.voted_on(p, voted[p]))
            elif not too_late:
                self.expect(p, np.zeros((SIZE, p.numel())))

    def voted_on(self, p, gradients):
        if self.kind == "Signum":
            self.momenta[p] = gradients = 0.5 * self.momenta[p] + 0.5 * gradients
        return gradients

    def expect(self, p, voted_on):
        q, lr = self.expected[p], self.group(p)["lr"]
        vote = np.sign(np.sign(voted_on).sum(0))
        if self.kind == "Adam":
            for group in self.reference.param_groups:
                group["params"] = [q]
                group["lr"] = lr
            q.grad = torch.from_numpy(vote.astype(np.float32))
            self.reference.param_groups = self.reference.param_groups[:1]
            self.reference.step()
        else:
            q.data -= lr * torch.from_numpy(vote.astype(np.float32))

    def group(self, p):
        return next(g for g in self.optimizer.param_groups for q in g["params"] if q is p)

    def replace(self, i, rows=5, keep=True):
        """A parameter grows by some coordinates, as points are added; its state moves on, and grows."""
        old = self.parameters[i]
        new = torch.nn.Parameter(torch.cat([old.detach(), torch.zeros(rows)]))
        group, state = self.group(old), self.optimizer.state
        group["params"][0] = new
        if old in state:
            state[new] = {k: grown(v, rows) for k, v in state.pop(old).items()}
        expected = self.expected.pop(old)
        self.expected[new] = torch.nn.Parameter(torch.cat([expected.detach(), torch.zeros(rows)]))
        if expected in self.reference.state:
            of_old = self.reference.state.pop(expected)
            self.reference.state[self.expected[new]] = {k: grown(v, rows) for k, v in of_old.items()}
        self.momenta[new] = np.concatenate([self.momenta.pop(old), np.zeros((SIZE, rows), np.float32)], 1)
        self.parameters[i] = new

    def check(self):
        for p in self.parameters:
            np.testing.assert_allclose(p.detach().numpy(), self.expected[p].detach().numpy(), rtol=1e-5, atol=1e-6)
        mine = b"".join(p.detach().numpy().tobytes() for p in self.parameters)
        assert len(set(MPI.COMM_WORLD.allgather(mine))) == 1, "the replicas differ"
        assert set(self.optimizer.state) <= set(self.parameters), "there is state of what is gone"


def grown(x, rows):
    return torch.cat([x, torch.zeros(rows)]) if isinstance(x, torch.Tensor) and x.dim() else x


KINDS = ["SGD", "Adam", "Signum"]
OPTIONS = [
    {"transport": "auto"},
    {"transport": "exchange"},
    {"transport": "counts", "overlap": False},
    {"transport": "exchange", "abstain": False, "overlap": False},
    {"hierarchical": True},
]


@pytest.mark.quick
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
def test_a_parameter_is_replaced_and_its_state_moved(kind, options):
    points = Points(kind, **options)
    points.step()
    old = weakref.ref(points.parameters[1])
    points.replace(1)
    points.step()
    for i in range(3):
        points.replace(i)
    points.step()
    points.step()
    points.check()
    gc.collect()
    assert old() is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"transport": "exchange"}, {"transport": "auto", "overlap": False}], ids=str)
def test_replaced_between_backward_and_step(kind, options):
    """The old one's gradient is gone with it, and the new one has none yet: it does not vote, or abstains."""
    points, too_late = Points(kind, **options), "overlap" not in options
    points.step()
    points.step(lambda: points.replace(1), too_late)
    points.step(lambda: points.replace(1, rows=0))  # of the new one no vote was on its way
    points.step()
    points.step(lambda: [points.replace(i) for i in range(3)], too_late)
    points.step()
    points.check()


def test_gradients_that_are_moved_too_late_do_not_count_and_it_is_said_once():
    points = Points("SGD", transport="exchange")
    points.step()

    def move():
        for i, p in enumerate(list(points.parameters)):
            gradient = p.grad
            points.replace(i, rows=0)
            points.parameters[i].grad = gradient

    with pytest.warns(RuntimeWarning, match="replaced after backward.*overlap=False") as warned:
        points.step(move, too_late=True)
        points.step()
        points.step(move, too_late=True)
    assert len(warned) == 1
    points.step()
    points.check()


@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_moved_reordered_emptied_and_dropped(kind):
    points = Points(kind, transport="exchange")
    points.step()
    first, second, third = points.optimizer.param_groups
    second["params"].append(first["params"].pop())  # it steps by the other learning rate from now on
    points.step()
    points.optimizer.param_groups[:] = [third, second]
    points.step()
    second["params"].reverse()
    points.step()
    dropped = points.parameters.pop(2)
    del points.optimizer.param_groups[0]
    points.optimizer.state.pop(dropped, None)
    before = dropped.detach().clone()
    points.step()
    points.step()
    assert torch.equal(dropped, before)
    points.check()


def test_all_parameters_are_taken_out_and_others_put_in():
    points = Points("Signum", transport="exchange")
    points.step()
    groups = points.optimizer.param_groups
    points.parameters, own = [], [groups[i]["params"].pop() for i in range(3)]
    for p in (own[0], own[2]):
        del points.optimizer.state[p]
    points.optimizer.step()
    points.optimizer.step()
    groups[1]["params"].append(own[1])
    points.parameters = [own[1]]
    points.step()
    points.step()
    points.check()


def be_late(monkeypatch):
    """Votes of nodes are decided long before it is known whether all ranks agree."""
    plain, left = Presence.check, [1000]

    def check(self, wait=False):
        left[0] -= 1
        if wait or left[0] < 0:
            plain(self, wait)

    monkeypatch.setattr(Presence, "check", check)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("what", ["replaced", "taken out", "put in", "moved", "swapped"])
def test_one_rank_alone_is_told_to_all(what, options, monkeypatch):
    be_late(monkeypatch)
    points = Points("Signum", (40, 40, 3), named=what == "moved", **options)  # by names the others could be told apart
    points.step()
    groups, before = points.optimizer.param_groups, [p.detach().clone() for p in points.parameters]
    points.optimizer.zero_grad()
    if RANK == 1:
        match what:
            case "replaced":
                points.replace(1, rows=0)
            case "taken out":
                groups[1]["params"].pop()
            case "put in":
                groups[1]["params"].append(torch.nn.Parameter(torch.ones(3)))
            case "moved":
                groups[0]["params"].append(groups[1]["params"].pop())
            case "swapped":
                groups[0]["params"], groups[1]["params"] = groups[1]["params"], groups[0]["params"]
    with pytest.raises(ValueError, match=r" on ranks? 0.* and .* on rank 1.*on all of them alike"):
        sum(p.sum() for p in points.parameters).backward()
        points.optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(points.parameters, before, strict=True))


def test_names_of_what_is_added_later_are_kept():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    optimizer = hvs.DistributedOptimizer(torch.optim.SGD(net[0].parameters(), 0.1), net.named_parameters())
    optimizer.param_groups[0]["params"][0] = torch.nn.Parameter(torch.ones(3))
    optimizer.step()
    optimizer.add_param_group({"params": net[1].parameters()})
    net[1].weight.grad = torch.full((2, 2), torch.nan)
    with pytest.warns(RuntimeWarning, match=r"gradient of parameter 1\.weight is NaN"):
        optimizer.step()


def test_names_that_the_optimizer_was_given():
    first, second = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2 + RANK, 2, bias=False)
    optimizer = hvs.DistributedOptimizer(torch.optim.SGD(first.named_parameters("first"), 0.1), check_replicas=0)
    first.weight.grad = torch.full((2, 2), torch.nan)
    with pytest.warns(RuntimeWarning, match=r"gradient of parameter first\.weight is NaN"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"second\.weight: float32, shape \(2, 2\).* on rank 0"):
        optimizer.add_param_group({"params": second.named_parameters("second")})


class Searching(torch.optim.SGD):
    """Evaluates its closure in the middle of its step, as line searches do."""

    def step(self, closure):
        loss = closure()
        super().step()
        return loss


def test_a_closure_of_parameters_that_were_put_in_is_voted_on():
    p, q = (torch.nn.Parameter(torch.zeros(SIZE)) for _ in range(2))
    optimizer = hvs.DistributedOptimizer(Searching([p], 1.0))
    optimizer.param_groups[0]["params"][0] = q

    def closure():
        optimizer.zero_grad()
        loss = q[RANK] + q[0]
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    assert q.tolist() == [-2.0] * SIZE  # of which rank 0 by itself would have moved one
    assert p.tolist() == [0.0] * SIZE
