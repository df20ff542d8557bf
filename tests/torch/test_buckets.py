"""Buckets of one rank: how parameters are cut, packed and stepped, on one process, against NumPy."""

import numpy as np
import oracle
import pytest
import simulation
import torch
from kernel_sets import KERNEL_SETS, use_kernels
from one_rank import OneRank

from horovod_sign import rules
from horovod_sign.algebra import unpack_votes
from horovod_sign.tensors.bucketing import make_buckets
from horovod_sign.tensors.buckets import Bucket
from horovod_sign.voting import messages


def parameters_of(*sizes, dtype=torch.float32):
    return [torch.nn.Parameter(torch.zeros(size, dtype=dtype)) for size in sizes]


def test_parameters_are_cut_into_buckets_last_first():
    p = parameters_of(10, 20, 30, 40, 50)
    voter = OneRank([{"params": p[:2]}, {"params": p[2:]}])
    everything = make_buckets(voter, dict.fromkeys(p, "p"), 10**6)
    assert [bucket.name for bucket in everything] == ["bucket0"]
    assert [slot.group for slot in everything[0].slots] == [1, 1, 1, 0, 0]
    buckets = make_buckets(voter, dict.fromkeys(p, "p"), 280, first=4)  # 280 bytes: 70 coordinates
    assert [[len(each) for each in bucket.parameters] for bucket in buckets] == [[50], [40, 30], [20, 10]]
    assert [bucket.name for bucket in buckets] == ["bucket4", "bucket5", "bucket6"]
    assert [bucket.coordinates for bucket in buckets] == [50, 70, 30]
    some = make_buckets(voter, {p[0]: "first", p[3]: "fourth"}, 1)
    assert [[len(each) for each in bucket.parameters] for bucket in some] == [[40], [10]]
    assert [bucket.slots[0].label for bucket in some] == ["fourth", "first"]
    assert make_buckets(voter, {}, 1) == []


@pytest.mark.parametrize("abstain", [True, False])
def test_a_bucket_packs_what_is_there_and_abstains_for_the_rest(abstain):
    sizes = (3, 64, 65, 7, 0)
    parameters = parameters_of(*sizes)
    bucket = Bucket("bucket", [(p, "p", 0) for p in parameters], OneRank([{"params": parameters}]))
    for step in range(2):  # planes are used again
        values = [oracle.gradients(step, n, np.float32) for n in sizes]
        for i, (p, x) in enumerate(zip(parameters, values, strict=True)):
            p.grad = None if i == step + 1 else torch.tensor(x)
            values[i] = np.zeros(sizes[i]) if i == step + 1 else x
        for slot in bucket.slots[:2]:
            assert not bucket.arrived(slot)
        bucket.pack(abstain)
        ballot = bucket.ballot
        assert (ballot.nonzero is None) == (not abstain)
        if abstain:
            missing = sizes[step + 1]
            assert bucket.zeros == sum(int((x == 0).sum()) for x in values)
            assert bucket.nans == sum(int(np.isnan(x).sum()) for x in values)
            assert bucket.zeros >= missing
        for p, slot, x in zip(parameters, bucket.slots, values, strict=True):
            piece = messages.Planes(*(None if each is None else each[slot.words] for each in ballot))
            np.testing.assert_array_equal(votes_in(piece, p.numel()), oracle.vote([x], abstain))
            if abstain:  # what fills the last word never abstains
                bits = np.unpackbits(piece.nonzero, bitorder="little")[len(x) :]
                assert bits.all()


def test_gradients_are_packed_as_soon_as_there_are_enough(monkeypatch):
    monkeypatch.setattr("horovod_sign.tensors.buckets.PACK_COORDINATES", 100)
    parameters = parameters_of(60, 40, 60)
    for p in parameters:
        p.grad = torch.ones(p.shape)
    bucket = Bucket("bucket", [(p, "p", 0) for p in parameters], OneRank([{"params": parameters}]))
    first, second, third = bucket.slots
    assert [bucket.arrived(slot) for slot in (first, second)] == [False, True]
    assert bucket.pack_waiting(True) == [first, second]
    assert not bucket.arrived(third)
    bucket.retract()  # what has come and is not packed is to come again
    assert (first.taken, second.taken, third.taken) == (True, True, False)
    assert not bucket.arrived(third)
    parameters[0].grad.neg_()  # has been packed
    parameters[2].grad.neg_()  # has not
    ballot = bucket.pack(True)
    assert [bool(ballot.sign[slot.words].any()) for slot in bucket.slots] == [False, False, True]


def test_a_bucket_of_unlike_parameters_steps_by_group():
    parameters = parameters_of(5) + parameters_of(70, dtype=torch.bfloat16) + parameters_of(3)
    groups = [
        {"params": parameters[:2], "lr": 0.5, "weight_decay": 0.0},
        {"params": parameters[2:], "lr": 0.25, "weight_decay": 2.0, "rule": rules.signum(0.5)},
    ]
    voter = OneRank(groups)
    (bucket,) = make_buckets(voter, dict.fromkeys(parameters, "p"), 10**6)
    with torch.no_grad():
        for p in parameters:
            p.fill_(1.0)
    parameters[1].requires_grad_(False)
    signs = [
        torch.sign(torch.randn(p.shape, generator=torch.Generator().manual_seed(i))) for i, p in enumerate(parameters)
    ]
    for p, s in zip(parameters, signs, strict=True):
        p.grad = (3 * s).to(p.dtype)
    bucket.take_step(bucket.pack(True))
    assert torch.equal(parameters[0].detach(), 1 - 0.5 * signs[0])
    assert (parameters[1] == 1).all()
    assert torch.equal(parameters[2].detach(), 1 - 0.25 * (signs[2] + 2))
    assert torch.equal(voter.states[parameters[2]]["momentum_buffer"], 1.5 * signs[2])
    assert parameters[0] not in voter.states
    parameters[2].grad = signs[2].to_sparse()
    parameters[0].grad = None
    bucket.write_votes(bucket.pack(True))
    assert (parameters[0].grad == 0).all()
    assert parameters[1].grad is None
    assert torch.equal(parameters[2].grad, signs[2])


def votes_in(ballot, n):
    return unpack_votes(*ballot, n)


def test_nan_alone_abstain():
    (p,) = parameters_of(70)
    p.grad = torch.ones(70)
    p.grad[3] = torch.nan
    bucket = Bucket("bucket", [(p, "p", 0)], OneRank([{"params": [p]}]))
    bits = np.unpackbits(bucket.pack(True).nonzero, bitorder="little")
    assert np.flatnonzero(bits == 0).tolist() == [3]
    p.grad = torch.ones(70)
    assert bucket.pack(True).nonzero is None  # nobody abstains any more


@pytest.mark.parametrize("kernels", KERNEL_SETS)
def test_kernels_and_torch_pack_by_both_betas(kernels, monkeypatch):
    """Votes by one, keeps by the other, as Lion does; what is not finite enters no momentum."""
    use_kernels(monkeypatch, kernels)
    (p,) = parameters_of(200)
    voter = OneRank([{"params": [p]}], rules.Interpolation(beta_vote=0.25, beta_state=0.75))
    bucket = Bucket("bucket", [(p, "p", 0)], voter)
    workers = simulation.Workers([np.zeros(200)], 1, simulation.Rule(0.25, 0.75))
    for step in range(5):
        g = oracle.gradients(step, 200, np.float32)
        g[np.abs(g) > 1e6] = np.inf
        p.grad = torch.tensor(g)
        ballot = bucket.pack(True)
        np.testing.assert_array_equal(votes_in(ballot, 200), workers.votes([[g]])[0])
    np.testing.assert_allclose(voter.states[p]["momentum_buffer"].numpy(), workers.m[0][0], rtol=1e-6)


@pytest.mark.parametrize("kernels", KERNEL_SETS)
def test_all_parameters_of_a_group_warm_up_alike(kernels, monkeypatch):
    """Also one that has no gradient in the first steps."""
    use_kernels(monkeypatch, kernels)
    parameters = parameters_of(3, 3)
    voter = OneRank([{"params": parameters}], rules.Interpolation(0.75, 0.75, warmup_steps=2))
    bucket = Bucket("bucket", [(p, "p", 0) for p in parameters], voter)
    workers = simulation.Workers([np.zeros(3)] * 2, 1, simulation.signum(0.75, warmup=2))
    for step, g in enumerate(([-8.0, 8.0, 1.0], [1.0, -1.0, 1.0], [1.0, -1.0, -1.0], [1.0, -1.0, -1.0])):
        gradients = [np.array(g, np.float32), np.array(g, np.float32) if step else None]
        for p, each in zip(parameters, gradients, strict=True):
            p.grad = None if each is None else torch.tensor(each)
        ballot = bucket.pack(True)
        for slot, vote in zip(bucket.slots, workers.votes([gradients]), strict=True):
            piece = messages.Planes(*(None if each is None else each[slot.words] for each in ballot))
            np.testing.assert_array_equal(votes_in(piece, 3), vote)
        assert [voter.states[p]["step"] for p in parameters] == [step + 1] * 2


def test_all_kernels_train_a_bucket_alike(monkeypatch):
    """Also a set that is added by a class and a line, as the page on architecture says: NumPy's."""
    results = []
    for name in (*KERNEL_SETS, "reference"):
        use_kernels(monkeypatch, name)
        parameters = parameters_of(70, 3, 64)
        voter = OneRank([{"params": parameters, "lr": 0.5, "weight_decay": 0.25}], rules.signum(0.75))
        bucket = Bucket("bucket", [(p, "p", 0) for p in parameters], voter)
        result = []
        with torch.no_grad():
            for step in range(3):
                for i, p in enumerate(parameters):
                    p.grad = None if i == step else torch.tensor(oracle.gradients(step, len(p), np.float32))
                bucket.take_step(bucket.pack(abstain=step < 2))
                result += [np.array([bucket.zeros, bucket.nans]), *(p.detach().numpy().copy() for p in parameters)]
            bucket.write_votes(bucket.ballot)
        results.append([*result, *(p.grad.numpy() for p in parameters)])
    for result in results[1:]:
        for x, y in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(x, y)
