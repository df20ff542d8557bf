"""Votes of the PyTorch adapter under mpirun, against the oracle and against majority_vote, coordinate by coordinate."""

import functools

import horovod.torch as hvd
import ml_dtypes
import numpy as np
import oracle
import pytest
import torch
from kernel_sets import KERNEL_SETS, use_kernels

import horovod_sign
import horovod_sign.torch as hvs

RANKS = (1, 2, 3)  # alone; even, where votes tie; odd; others: core/test_properties.py


DTYPES = {np.dtype(ml_dtypes.bfloat16): torch.bfloat16}
LENGTHS = [1, 0, 7, 8, 63, 64, 65, 257, 1000, 100_003]


def tensor(x: np.ndarray) -> torch.Tensor:
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(x.copy())


def array(t: torch.Tensor) -> np.ndarray:
    return t.detach().to(torch.float64).numpy()


@functools.cache  # the same for all options; nobody writes to them
def inputs_of(rank: int, dtype) -> list[np.ndarray]:
    return [oracle.gradients(rank, n, dtype, seed=i) for i, n in enumerate(LENGTHS)]


@pytest.mark.quick
@pytest.mark.parametrize("transport", ["exchange", "counts"])
@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
@pytest.mark.parametrize("bucket_cap_mb", [12.0, 0.0005])
def test_votes_of_the_distributed_optimizer(dtype, abstain, transport, bucket_cap_mb):
    inputs = [inputs_of(rank, dtype) for rank in range(hvd.size())]
    parameters = [torch.nn.Parameter(torch.zeros_like(tensor(x))) for x in inputs[0]]
    optimizer = hvs.DistributedOptimizer(
        torch.optim.SGD(parameters, 1.0), abstain=abstain, transport=transport, bucket_cap_mb=bucket_cap_mb
    )
    sum((p * tensor(x)).sum() for p, x in zip(parameters, inputs[hvd.rank()], strict=True)).backward()
    for p, x in zip(parameters, inputs[hvd.rank()], strict=True):
        assert p.grad.shape == x.shape
        p.grad.copy_(tensor(x))  # the hooks have voted on the same: this is for the eyes of majority_vote below
    optimizer.synchronize()
    for i, p in enumerate(parameters):
        expected = oracle.vote([of_rank[i] for of_rank in inputs], abstain)
        np.testing.assert_array_equal(array(p.grad), expected)
        core = horovod_sign.majority_vote(inputs[hvd.rank()][i], abstain=abstain, transport=transport)
        np.testing.assert_array_equal(core, expected)


@pytest.mark.parametrize("kernels", KERNEL_SETS)
@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
def test_votes_of_compression_in_the_stock_allreduce(dtype, abstain, kernels, monkeypatch):
    use_kernels(monkeypatch, kernels)
    if hvd.size() > 1:
        for i in range(len(LENGTHS) - (kernels == "triton")):  # its interpreter is slow: of two tiles, test_devices.py
            inputs = [inputs_of(rank, dtype)[i] for rank in range(hvd.size())]
            vote = hvd.allreduce(
                tensor(inputs[hvd.rank()]),
                name=f"stock.{i}",
                op=hvd.Sum,
                compression=hvs.Compression.signsgd(abstain=abstain),
            )
            np.testing.assert_array_equal(array(vote), oracle.vote(inputs, abstain))


def test_kernels_obey_the_bits_when_denormals_are_flushed():
    """A subnormal is nonzero and votes, also on a thread that computes as if it were zero."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        p = torch.nn.Parameter(torch.zeros(3))
        optimizer = hvs.DistributedOptimizer(torch.optim.SGD([p], 1.0))
        p.grad = torch.tensor([1, 0, -(2**31) + 1], dtype=torch.int32).view(torch.float32)
        optimizer.synchronize()
        np.testing.assert_array_equal(array(p.grad), [1, 0, -1])
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.fault("join")
def test_joined_ranks_abstain_in_the_stock_wrapper():
    """Uneven data: rank r has r + 1 steps and then joins, so in the end the last rank votes alone."""
    p = torch.nn.Parameter(torch.zeros(100))
    counting = hvd.DistributedOptimizer(torch.optim.SGD([p], 1.0), [("p", p)], hvs.Compression.signsgd(), op=hvd.Sum)
    x = tensor(oracle.gradients(hvd.rank(), 100, np.float32))
    for step in range(1 + hvd.rank()):  # the last rank has most steps
        p.grad = None
        p.grad = x.clone()
        counting.step()
        voters = range(step, hvd.size())
        expected = oracle.vote([oracle.gradients(rank, 100, np.float32) for rank in voters])
        if hvd.size() > 1:
            np.testing.assert_array_equal(array(p.grad), expected)
    hvd.join()
