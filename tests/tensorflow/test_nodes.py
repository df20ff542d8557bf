"""Votes of nodes by a tape, with the process sets that Horovod is given at its start."""

import os

import horovod.tensorflow as hvd
import numpy as np
import pytest
import simulation
import tensorflow as tf
from ranks import RANK
from tape_tasks import Task, assert_equal

import horovod_sign.tensorflow as hvs
from horovod_sign.voting.nodes import OVERRIDE

RANKS = (3,)  # nodes of two ranks and of one
OWN_LAUNCH = True  # static process sets; and of Horovod's joins in TensorFlow only the first of a process waits
NODES = (0, 0, 1)


@pytest.fixture(scope="module", autouse=True)
def horovod():
    os.environ[OVERRIDE] = f"node{NODES[RANK]}"
    hvd.init(process_sets=hvs.node_process_sets())
    yield
    del os.environ[OVERRIDE]


@pytest.mark.parametrize(("transport", "in_graph"), [("exchange", True), ("exchange", False), ("counts", True)])
def test_votes_of_nodes_equal_the_simulation(transport, in_graph):
    """Each variable in a bucket of its own; a missing gradient counts as zeros in the mean."""
    task, compression = Task(), hvs.Compression.signum(0.9)
    simulated = simulation.Workers([v.numpy() for v in task.variables], 2, simulation.signum(0.9))
    options = {"compression": compression, "transport": transport, "hierarchical": True, "bucket_cap_mb": 2e-5}
    step = task.stepper(lambda tape: hvs.DistributedGradientTape(tape, **options), in_graph)
    for number, rows in enumerate((16, 16, 8)):
        of_nodes = simulation.means_by_node(task.gradients_of_all(number, rows), NODES)
        assert_equal(step(number, rows), simulated.votes([[g.astype(np.float32) for g in node] for node in of_nodes]))
    statistics = compression.vote_statistics()
    assert (statistics.bytes_sent > 0) == (RANK != 1)  # no rank but the first of each node
    assert statistics.bytes_float32 == 15 * 4


@pytest.mark.fault("join-exchange")
def test_votes_of_nodes_with_a_rank_that_has_joined():
    """One sentence on those that go on, before anything is averaged or sent: its node would wait for it for ever."""
    task, compression = Task(), hvs.Compression.signsgd()

    def wrap(tape):
        return hvs.DistributedGradientTape(tape, compression=compression, hierarchical=True)

    steps = [task.stepper(wrap, in_graph) for in_graph in (True, False)]
    for step in steps:
        step(0)
    for step in steps if RANK != 1 else ():
        errors = (RuntimeError, tf.errors.InvalidArgumentError)
        with pytest.raises(errors, match=r"called hvd\.join\(\).*leave hierarchical=True out"):
            step(1)
    hvd.join()
