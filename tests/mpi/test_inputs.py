"""What `majority_vote` is given: whatever one rank cannot vote on, all are told of, and nobody waits for ever."""

import warnings

import numpy as np
import oracle
import pytest
from ranks import LAST, RANK, SIZE

from horovod_sign import majority_vote

RANKS = (1, 3)  # alone; one wrong rank among several, whose votes do not tie

pytestmark = pytest.mark.fault("inputs")


class Unreadable:
    """Says of itself that it is an array, and then fails, in a way that NumPy lets through."""

    def __init__(self, error):
        self.error = error

    def __array__(self, dtype=None, copy=None):
        raise self.error


def tensor(**options):
    torch = pytest.importorskip("torch")
    return torch.ones(4, **options)


REFUSED = {
    "ragged list": lambda: [[1.0, 2.0], [3.0]],
    "list of a ragged list": lambda: [[[1.0], [2.0, 3.0]], 4.0],
    "an error of another type": lambda: Unreadable(RuntimeError("out of reach")),
    "an error whose text is no text": lambda: Unreadable(ValueError("\udcff")),
    "out of memory": lambda: Unreadable(MemoryError()),
    "words": lambda: ["plus", "minus"],
    "None": lambda: None,
    "generator": lambda: (x for x in (1.0, 2.0)),
    "whole numbers in a list": lambda: [1, -1],
    "list of masked arrays": lambda: [np.ma.masked_less([1.0, -1.0], 0), np.ma.masked_less([1.0, -1.0], 0)],
    "nested list with a masked number": lambda: [[1.0, np.ma.masked], [1.0, 2.0]],
    "whole numbers under a mask": lambda: np.ma.masked_less([1, -1], 0),
    "sparse tensor": lambda: tensor().to_sparse(),
    "tensor without memory": lambda: tensor(device="meta"),
    "tensor of whole numbers": lambda: tensor().int(),
    "tensor of 8 bits": lambda: tensor().to(pytest.importorskip("torch").float8_e4m3fn),
    "tensor of complex numbers": lambda: tensor().cfloat(),
    "list of tensors that require grad": lambda: [tensor(requires_grad=True)],
    "list of tensors of bfloat16": lambda: [tensor(dtype=pytest.importorskip("torch").bfloat16)],
}


@pytest.mark.parametrize("what", REFUSED)
def test_one_rank_cannot_vote(comm, what):
    wrong = REFUSED[what]()
    mine = wrong if RANK == LAST else np.ones(2)
    with warnings.catch_warnings(), pytest.raises((TypeError, ValueError), match=f"rank {LAST} cannot vote: .") as said:
        warnings.simplefilter("error")  # a mask that is lost, for example
        majority_vote(mine, comm)
    assert len(set(comm.allgather(f"{type(said.value)} {said.value}"))) == 1
    assert majority_vote(np.ones(2), comm).tolist() == [1, 1]  # and the next vote works


def test_an_option_that_cannot_be_compared(comm):
    for option in ({"transport": np.array(["auto", "counts"])}, {"abstain": np.array([True, False])}):
        with pytest.raises((TypeError, ValueError), match=f"rank {LAST} cannot vote"):
            majority_vote(np.ones(2), comm, **(option if RANK == LAST else {}))


@pytest.mark.parametrize("transport", ["exchange", "counts"])
@pytest.mark.parametrize("abstain", [True, False])
def test_masked_entries_abstain(comm, abstain, transport):
    """Whatever lies under a mask, -inf here, does not vote."""
    inputs = [oracle.gradients(rank, 1001, np.float32) for rank in range(SIZE)]
    masks = [np.random.default_rng(rank).random(1001) < 0.4 for rank in range(SIZE)]
    expected = oracle.vote([np.where(m, np.nan, x) for x, m in zip(inputs, masks, strict=True)], abstain)
    mine = np.ma.array(np.where(masks[RANK], -np.inf, inputs[RANK]), mask=masks[RANK])
    vote = majority_vote(mine, comm, abstain=abstain, transport=transport)
    assert type(vote) is np.ndarray
    np.testing.assert_array_equal(vote, expected)
    np.testing.assert_array_equal(majority_vote(mine[::-2].copy(), comm, abstain=abstain), expected[::-2])


def test_masked_forms(comm):
    """No mask at all, all masked, 0 dimensions, a mask on one rank alone."""
    minus = -np.ones(3, np.float32)
    assert majority_vote(np.ma.array(minus), comm).tolist() == [-1, -1, -1]
    assert majority_vote(np.ma.array(minus, mask=True), comm).tolist() == [0, 0, 0]
    assert majority_vote(np.ma.array(-1.0, mask=True), comm) == 0
    mine = np.ma.array(-minus if RANK == LAST else minus, mask=RANK != LAST)
    assert majority_vote(mine, comm).tolist() == [1, 1, 1]


TENSORS = {
    "requires grad": lambda x: x.requires_grad_(),
    "result of a computation": lambda x: x.requires_grad_() * 1.0,
    "bfloat16": lambda x: x.bfloat16(),
    "bfloat16 that requires grad": lambda x: x.bfloat16().requires_grad_(),
    "half": lambda x: x.half(),
    "double": lambda x: x.double(),
    "negated lazily": lambda x: x._neg_view(),
    "strided": lambda x: x.repeat_interleave(2)[::2],
    "parameter": lambda x: pytest.importorskip("torch").nn.Parameter(x),
}


@pytest.mark.parametrize("form", TENSORS)
def test_tensors_of_pytorch(comm, form):
    torch = pytest.importorskip("torch")
    inputs = [oracle.gradients(rank, 1001, np.float32) for rank in range(SIZE)]
    tensors = [TENSORS[form](torch.from_numpy(x.copy())) for x in inputs]
    values = [t.detach().resolve_neg().double().numpy() for t in tensors]
    np.testing.assert_array_equal(majority_vote(tensors[RANK], comm), oracle.vote(values))


def test_bfloat16_of_pytorch_and_of_numpy_are_one_dtype(comm):
    torch, ml_dtypes = pytest.importorskip("torch"), pytest.importorskip("ml_dtypes")
    x = np.array([-1.0, 2.0], ml_dtypes.bfloat16)
    mine = torch.tensor([-1.0, 2.0], dtype=torch.bfloat16) if RANK == LAST else x
    assert majority_vote(mine, comm).tolist() == [-1, 1]
