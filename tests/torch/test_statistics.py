"""What an optimizer says about its votes, under mpirun, against counts made from all ranks' gradients by NumPy."""

import math
import warnings

import horovod.torch as hvd
import numpy as np
import oracle
import pytest
import torch

import horovod_sign.torch as hvs
from horovod_sign.statistics import PATIENCE, chance_agreement

RANKS = (1, 3)  # alone; enough that one can disagree with a majority


LENGTHS = [1, 0, 7, 64, 65, 1000, 3001]


@pytest.mark.quick
@pytest.mark.parametrize("transport", ["exchange", "counts"])
@pytest.mark.parametrize("missing", ["nothing", "a parameter", "everything"])
@pytest.mark.parametrize("bucket_cap_mb", [12.0, 0.0005])
def test_counts_are_those_of_numpy(missing, transport, bucket_cap_mb):
    """Padding is not counted, whatever the lengths, and although a rank may lack gradients."""
    ranks, me = range(hvd.size()), hvd.rank()
    signs = [[oracle.gradients(rank, n, np.float32, seed=i) for i, n in enumerate(LENGTHS)] for rank in ranks]
    lacking = [rank == 0 and missing != "nothing" for rank in ranks]
    for rank in ranks:
        for i in range(len(LENGTHS)):
            if lacking[rank] and (missing == "everything" or i == 4):
                signs[rank][i][:] = 0
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in LENGTHS]
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD(parameters, 1.0), transport=transport, bucket_cap_mb=bucket_cap_mb)
    for i, p in enumerate(parameters):
        if not (lacking[me] and (missing == "everything" or i == 4)):
            p.grad = torch.from_numpy(signs[me][i].copy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        optimizer.step()
    mine = np.concatenate(signs[me])
    vote = np.concatenate([oracle.vote([of_rank[i] for of_rank in signs]) for i in range(len(LENGTHS))])
    own = np.sign(np.nan_to_num(mine))
    both = (own != 0) & (vote != 0)
    got, n = optimizer.vote_statistics(), sum(LENGTHS)
    assert (got.step, got.coordinates) == (1, n)
    assert got.nans == got.total_nans == np.isnan(mine).sum()
    assert got.abstained == (own == 0).sum() / n
    assert got.ties == (vote == 0).sum() / n
    if both.any():
        assert got.agreement == got.mean_agreement == (own == vote)[both].mean()
    else:
        assert math.isnan(got.agreement)
    assert got.bytes_sent == optimizer.bytes_sent
    assert got.bytes_float32 == 2 * (hvd.size() - 1) * 4 * n // hvd.size()


def test_scalars_for_tensorboard():
    class Writer:
        def __init__(self):
            self.scalars = {}

        def add_scalar(self, tag, value, step):
            self.scalars[tag] = value, step

    p = torch.nn.Parameter(torch.zeros(100))
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD([p], 1.0))
    assert optimizer.vote_statistics() == hvs.VoteStatistics()._replace(
        agreement=optimizer.vote_statistics().agreement, mean_agreement=optimizer.vote_statistics().mean_agreement
    )
    p.sum().backward()
    optimizer.step()
    writer = Writer()
    optimizer.vote_statistics().add_scalars(writer)
    assert writer.scalars["votes/agreement"] == (1.0, 1)
    assert writer.scalars["votes/coordinates"] == (100, 1)
    optimizer.vote_statistics().add_scalars(writer, step=7, prefix="x/")
    assert writer.scalars["x/ties"] == (0.0, 7)


@pytest.mark.parametrize("kind", ["honest", "flipped"])
@pytest.mark.parametrize("abstain", [True, False])
def test_a_rank_that_systematically_disagrees_is_reported(kind, abstain):
    """Once, on that rank, by its number; honest ranks with noisy gradients are not, where ties are +1 neither."""
    last = hvd.size() - 1
    p = torch.nn.Parameter(torch.zeros(500))
    if kind == "flipped" and hvd.rank() == last:
        hvs.adversaries.corrupt([p], "flipped")
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD([p], 0.0), abstain=abstain)
    generator = torch.Generator().manual_seed(hvd.rank())
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(PATIENCE + 20):
            optimizer.zero_grad()
            (p * (torch.randn(500, generator=generator) + 0.5)).sum().backward()  # 69% of signs are right
            optimizer.step()
    messages = [str(each.message) for each in warned]
    # With two ranks nobody can tell which of them is wrong.
    expected = kind == "flipped" and hvd.size() > 2 and hvd.rank() == last
    assert len(messages) == expected, messages
    assert all(f"rank {last} systematically disagrees" in text for text in messages)


def test_the_agreement_of_random_votes():
    """The formula, against a simulation."""
    random = np.random.default_rng(0)
    for size in (1, 2, 3, 4, 5, 6, 51):
        signs = random.choice([-1, 1], (20_000, size))
        vote = np.sign(signs.sum(1))
        simulated = (signs[:, 0] == vote)[vote != 0].mean()
        assert abs(chance_agreement(size) - simulated) < 0.02
        simulated = (signs[:, 0] == np.where(signs.sum(1) < 0, -1, 1)).mean()
        assert abs(chance_agreement(size, abstain=False) - simulated) < 0.02
    assert 0.5 < chance_agreement(100_000) < 0.51
