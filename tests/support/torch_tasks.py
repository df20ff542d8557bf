"""Small PyTorch models and steps that the rank programs train, and the same steps by NumPy."""

import horovod.torch as hvd
import numpy as np
import simulation
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


def train(net: torch.nn.Module, optimizer, steps, dtype=torch.float32):
    """Steps on images of this rank's own. `steps`: their numbers."""
    for step in steps:
        optimizer.zero_grad()
        backward(net, step, dtype)
        optimizer.step()


def momenta(optimizer) -> list[np.ndarray]:
    """Copies of what this rank votes by."""
    states = [optimizer.vote_state(p) for group in optimizer.param_groups for p in group["params"]]
    return [state["momentum_buffer"].numpy().copy() for state in states if "momentum_buffer" in state]


def gradients_of_all_ranks(net: torch.nn.Module) -> list[list[np.ndarray | None]]:
    """For each rank, its gradients."""
    mine = [None if p.grad is None else p.grad.detach().to(torch.float32).numpy().copy() for p in net.parameters()]
    return MPI.COMM_WORLD.allgather(mine)


def assert_replicas_identical(net: torch.nn.Module):
    """The parameters of all ranks are the same bit for bit."""
    mine = b"".join(value.tobytes() for value in values(net))
    assert all(other == mine for other in MPI.COMM_WORLD.allgather(mine)), "the replicas differ"


def assert_equal_on_all_ranks(left, right):
    """These arrays are the same, bit for bit, on each rank; all ranks hear of it if they are not on one."""
    same = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(left, right, strict=True))
    unlike = [rank for rank, each in enumerate(MPI.COMM_WORLD.allgather(same)) if not each]
    assert not unlike, f"the arrays differ on ranks {unlike}"


def assert_simulated(net: torch.nn.Module, simulation):
    """The replicas are identical, and where the simulation is, up to rounding."""
    assert_replicas_identical(net)
    for value, simulated in zip(values(net), simulation.x, strict=True):
        np.testing.assert_allclose(value, simulated, rtol=1e-5, atol=1e-6)


def simulate(start: list[np.ndarray], ranks: int, lr: float, momentum=None, weight_decay=0.0, abstain=True, warmup=0):
    """A `Simulation` of signSGD (momentum None) or Signum."""
    rule = simulation.SIGNSGD if momentum is None else simulation.signum(momentum, warmup)
    return simulation.Simulation(start, ranks, lr, rule, weight_decay, abstain)


Simulation = simulate
