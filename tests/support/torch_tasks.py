"""Small PyTorch models and steps that the rank programs train, and the same steps by NumPy."""

import horovod.torch as hvd
import numpy as np
import oracle
import torch
from mpi4py import MPI


def model(seed: int = 1, dtype=torch.float32) -> torch.nn.Module:
    """A small CNN with parameters of many sizes, the same on all ranks."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(3 * 6 * 6, 7),
        torch.nn.BatchNorm1d(7),
        torch.nn.Linear(7, 3),
    ).to(dtype)


def backward(net: torch.nn.Module, step: int, dtype=torch.float32):
    """One backward pass on images of this rank's own."""
    loss(net, step, dtype).backward()


def loss(net: torch.nn.Module, step: int, dtype=torch.float32) -> torch.Tensor:
    """The loss on images of this rank's own."""
    generator = torch.Generator().manual_seed(1000 * step + hvd.rank())
    x = torch.randn(5, 1, 8, 8, generator=generator).to(dtype)
    y = torch.randint(3, (5,), generator=generator)
    return torch.nn.functional.cross_entropy(net(x), y)


def values(net: torch.nn.Module) -> list[np.ndarray]:
    """Copies of the parameters."""
    return [p.detach().to(torch.float64).numpy().copy() for p in net.parameters()]


def gradients_of_all_ranks(net: torch.nn.Module) -> list[list[np.ndarray | None]]:
    """For each rank, its gradients."""
    mine = [None if p.grad is None else p.grad.detach().to(torch.float32).numpy().copy() for p in net.parameters()]
    return MPI.COMM_WORLD.allgather(mine)


def assert_replicas_identical(net: torch.nn.Module):
    """The parameters of all ranks are the same bit for bit."""
    mine = b"".join(value.tobytes() for value in values(net))
    assert all(other == mine for other in MPI.COMM_WORLD.allgather(mine)), "the replicas differ"


class Simulation:
    """signSGD (momentum None) or Signum by majority vote, in NumPy, on given gradients."""

    def __init__(self, start: list[np.ndarray], ranks: int, lr: float, momentum=None, weight_decay=0.0, abstain=True):
        self.x = [x.copy() for x in start]
        self._m = [[np.zeros(x.shape, np.float32) for x in start] for _ in range(ranks)]
        self._lr, self._momentum, self._decay, self._abstain = lr, momentum, weight_decay, abstain

    def step(self, gradients: list[list[np.ndarray | None]]):
        for i, x in enumerate(self.x):
            ballots = [self._ballot(rank, i, of_rank[i]) for rank, of_rank in enumerate(gradients)]
            self.x[i] = x - self._lr * (oracle.vote(ballots, self._abstain) + self._decay * x)

    def _ballot(self, rank, i, g):
        if g is None:
            return np.zeros(self.x[i].shape)
        if self._momentum is None:
            return g
        m = self._m[rank][i]
        m[...] = m * np.float32(self._momentum) + g * np.float32(1 - self._momentum)
        return m
