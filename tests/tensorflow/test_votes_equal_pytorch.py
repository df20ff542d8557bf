"""Votes of both adapters in one process: the same, bit for bit."""

import horovod.tensorflow as hvd
import numpy as np
import oracle
import pytest
import tensorflow as tf
from ranks import RANK, SIZE

from horovod_sign import rules
from horovod_sign.graphs.packing import Coordinates
from horovod_sign.tensorflow.election import Election

torch = pytest.importorskip("torch")
torch_hvd = pytest.importorskip("horovod.torch")

RANKS = (2,)  # each adapter's votes equal NumPy's at other counts too: test_votes.py here and in torch/
OWN_LAUNCH = True  # Horovod's frameworks share one table of process sets, and PyTorch's takes it over

SHAPES = [(), (0,), (3, 5), (64,), (7, 11, 13)]
KINDS = [(shape, dtype) for dtype in oracle.DTYPES for shape in SHAPES]


@pytest.fixture(scope="module", autouse=True)
def horovod():
    torch_hvd.init()
    hvd.init()


@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize("transport", ["exchange", "counts"])
def test_votes_equal_pytorch(transport, abstain):
    import horovod_sign.torch as hvs

    of_all = [
        [oracle.gradients(r, int(np.prod(s)), d, i).reshape(s) for i, (s, d) in enumerate(KINDS)] for r in range(SIZE)
    ]
    election = Election(rules.signsgd(), abstain=abstain, transport=transport)
    variables = [Coordinates(shape, tf.as_dtype(dtype)) for shape, dtype in KINDS]
    votes = election.vote([tf.constant(g) for g in of_all[RANK]], variables, [str(i) for i in range(len(KINDS))])
    parameters = [torch.nn.Parameter(to_torch(g)) for g in of_all[RANK]]
    for p in parameters:
        p.grad = p.detach().clone()
    hvs.DistributedOptimizer(torch.optim.SGD(parameters, lr=0.0), abstain=abstain, transport=transport).synchronize()
    for i, (vote, p) in enumerate(zip(votes, parameters, strict=True)):
        np.testing.assert_array_equal(vote.numpy().astype(np.float64), p.grad.to(torch.float64).numpy())
        np.testing.assert_array_equal(
            vote.numpy().astype(np.int8), oracle.vote([ranks[i] for ranks in of_all], abstain)
        )


def to_torch(array):
    if array.dtype.name != "bfloat16":
        return torch.from_numpy(array.copy())
    return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
