"""Votes of the PyTorch adapter, against the oracle: started without MPI by test_elastic.py."""

import horovod.torch as hvd
import numpy as np
import oracle
import torch

import horovod_sign.torch as hvs

hvd.init()
for transport in ("exchange", "counts"):
    for dtype in (np.float16, np.float32):
        inputs = [oracle.gradients(rank, 1001, dtype) for rank in range(hvd.size())]
        p = torch.nn.Parameter(torch.zeros(1001, dtype=torch.from_numpy(inputs[0]).dtype))
        optimizer = hvs.DistributedOptimizer(torch.optim.SGD([p], 1.0), transport=transport)
        p.grad = torch.from_numpy(inputs[hvd.rank()].copy())
        optimizer.synchronize()
        np.testing.assert_array_equal(p.grad.numpy(), oracle.vote(inputs))
assert hvd.size() == 3 and not hvd.mpi_enabled()
print("votes equal the oracle", flush=True)
