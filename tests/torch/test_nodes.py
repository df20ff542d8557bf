"""Nodes whose process sets Horovod is given at its start: nothing is added later, when that would slow its engine."""

import os
import socket

import horovod.torch as hvd
import numpy as np
import pytest
import torch
from mpi4py import MPI

import horovod_sign.torch as hvs
from horovod_sign.voting.nodes import OVERRIDE, find_nodes

RANKS = (4,)  # a node of one rank and one of three
OWN_LAUNCH = True  # static process sets


def node_of(rank: int) -> int:
    """Two nodes, of one rank and of all the others."""
    return min(rank, 1)


@pytest.fixture(scope="module", autouse=True)
def horovod():
    os.environ[OVERRIDE] = f"node{node_of(MPI.COMM_WORLD.rank)}"
    hvd.init(process_sets=hvs.node_process_sets())
    yield
    del os.environ[OVERRIDE]


def test_the_sets_are_the_nodes_and_the_first_ranks():
    everyone = list(range(hvd.size()))
    wanted = {(0,), tuple(everyone[1:]), (0, 1)} - {tuple(everyone)}
    assert {tuple(each.ranks) for each in hvs.node_process_sets()} == wanted
    with pytest.raises(ValueError, match="HOROVOD_DYNAMIC_PROCESS_SETS"):
        hvd.add_process_set([0])


@pytest.mark.parametrize("transport", ["exchange", "counts"])
def test_votes_are_those_of_nodes(transport):
    p = torch.nn.Parameter(torch.zeros(200))
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD([p], 1.0), hierarchical=True, transport=transport)
    of_all = [np.random.default_rng(rank).integers(-2, 3, 200).astype(np.float32) * 12 for rank in range(hvd.size())]
    p.grad = torch.tensor(of_all[hvd.rank()])
    optimizer.step()
    means = [of_all[0], np.mean(of_all[1:], axis=0)]
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
    assert found.own is hvd.global_process_set


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
