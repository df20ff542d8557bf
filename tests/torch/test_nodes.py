"""Nodes whose process sets Horovod is given at its start: nothing is added later, when that would slow its engine."""

import os
import socket
import warnings

import horovod.torch as hvd
import numpy as np
import pytest
import torch
from ranks import LAST, RANK

import horovod_sign.torch as hvs
from horovod_sign.voting.nodes import OVERRIDE, find_nodes

RANKS = (4,)  # a node of one rank and one of three; two of two
OWN_LAUNCH = True  # static process sets


LAYOUTS = {"two and two": (0, 0, 1, 1), "one and three": (0, 1, 1, 1)}  # the node of each rank


@pytest.fixture(scope="module", autouse=True)
def horovod():
    """The process sets of both layouts; the second is the one of tests that do not say another."""
    for nodes in LAYOUTS.values():
        os.environ[OVERRIDE] = f"node{nodes[RANK]}"
        sets = hvs.node_process_sets()  # those of before are among them
    hvd.init(process_sets=sets)
    yield
    del os.environ[OVERRIDE]


def test_the_sets_are_the_nodes_and_the_first_ranks():
    sets = [tuple(each.ranks) for each in hvs.node_process_sets()]
    assert sorted(sets) == [(0,), (0, 1), (0, 2), (1, 2, 3), (2, 3)]
    with pytest.raises(ValueError, match="HOROVOD_DYNAMIC_PROCESS_SETS"):
        hvd.add_process_set([0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("transport", ["exchange", "counts"])
def test_votes_are_those_of_nodes(transport, layout, monkeypatch):
    nodes = LAYOUTS[layout]
    monkeypatch.setenv(OVERRIDE, f"node{nodes[RANK]}")
    p = torch.nn.Parameter(torch.zeros(200))
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD([p], 1.0), hierarchical=True, transport=transport)
    of_all = [np.random.default_rng(rank).integers(-2, 3, 200).astype(np.float32) * 12 for rank in range(hvd.size())]
    p.grad = torch.tensor(of_all[hvd.rank()])
    optimizer.step()
    means = [np.mean([x for x, node in zip(of_all, nodes, strict=True) if node == k], axis=0) for k in (0, 1)]
    np.testing.assert_array_equal(p.detach().numpy(), -np.sign(np.sign(means).sum(0)))


def test_without_mpi_one_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setitem(os.environ, "HOROVOD_SIZE", str(hvd.size() + 1))
    with pytest.raises(ValueError, match=r"launch by mpirun with mpi4py installed, or call hvd.init"):
        hvs.node_process_sets()


def test_nodes_need_process_sets(monkeypatch):
    """Other nodes than those that Horovod was told of: their sets cannot be made later."""
    monkeypatch.setenv(OVERRIDE, f"node{hvd.rank()}")
    p = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=r"call hvd.init\(process_sets=hvs.node_process_sets\(\)\)"):
        hvs.DistributedOptimizer(hvs.SignSGD([p], 1.0), hierarchical=True)


@pytest.mark.parametrize("horovod_alone", [False, True])
def test_nodes_are_ranks_that_share_memory(monkeypatch, horovod_alone):
    """By MPI, or where one rank lacks mpi4py by Horovod's numbers; not by host names, which each container has."""
    monkeypatch.delenv(OVERRIDE)
    monkeypatch.setattr(socket, "gethostname", lambda: f"container{hvd.rank()}")
    if horovod_alone and hvd.rank() == 1:
        monkeypatch.setattr("horovod_sign.voting.nodes.mpi_beside", lambda hvd: None)
    found = find_nodes(hvd)
    assert (found.number, found.count, found.leads) == (0, 1, hvd.rank() == 0)
    assert found.local_set is hvd.global_process_set


def test_a_node_that_is_named_on_one_rank_alone_is_an_error_on_all(monkeypatch):
    if hvd.rank() != 1:
        monkeypatch.delenv(OVERRIDE)
    with pytest.raises(ValueError, match=f"{OVERRIDE} names the nodes of some ranks"):
        find_nodes(hvd)


@pytest.mark.fault("join-exchange")
@pytest.mark.parametrize("transport", ["exchange", "counts"])
def test_joined_ranks_are_one_clear_sentence(transport):
    """Not a hang: the node of a rank in hvd.join() would wait for it."""
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD([p], 1.0), hierarchical=True, transport=transport)
    if hvd.rank() < hvd.size() - 1:
        p.grad = torch.ones(3)
        with pytest.raises(RuntimeError, match=r"called hvd\.join\(\).*leave hierarchical=True out"):
            optimizer.step()
    hvd.join()


def test_messages_name_the_rank_of_the_job():
    """In a set of three of four ranks, of whom one can be told from the others."""
    those = next(each for each in hvs.node_process_sets() if each.ranks == [1, 2, 3])
    p = torch.nn.Parameter(torch.zeros(50))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        if RANK > 0:
            optimizer = hvs.DistributedOptimizer(hvs.SignSGD([p], 0.0), [("weight", p)], process_set=those)
            for step in range(110):
                optimizer.zero_grad()
                g = torch.full((50,), -1.0 if RANK == LAST else 1.0)
                g[0] = torch.nan if RANK == 1 and step == 3 else g[0]
                p.grad = g
                optimizer.step()
    said = [str(each.message) for each in warned if "rank" in str(each.message)]
    if RANK == 1:
        assert len(said) == 1
        assert said[0].startswith("rank 1: the gradient of parameter weight is NaN in 1 of 50")
    elif RANK == LAST:
        assert len(said) == 1
        assert said[0].startswith(f"rank {LAST} systematically disagrees")
    else:
        assert said == []
