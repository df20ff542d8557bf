"""The state of an elastic job, without the job: commits, going back, and what all ranks then have in common."""

import horovod.tensorflow as hvd
import keras
import keras_tasks as tasks
import numpy as np
import pytest
import tensorflow as tf
from horovod.common.exceptions import HorovodInternalError
from mpi4py import MPI
from ranks import LAST, RANK, SIZE

import horovod_sign.tensorflow.keras as hvs
from horovod_sign.tensorflow.failures import horovods_failures
from horovod_sign.tensorflow.keras import elastic
from horovod_sign.tensorflow.keras.states import OptimizerStates

RANKS = (2,)  # each with momenta of its own; jobs whose ranks come and go: launch/test_elastic.py

KINDS = {
    "Signum": lambda: hvs.DistributedOptimizer(hvs.Signum(0.01, 0.5)),
    "Adam": lambda: hvs.DistributedOptimizer(keras.optimizers.Adam(0.01), compression=hvs.Compression.signum(0.5)),
}


def everything(net) -> list[np.ndarray]:
    own = OptimizerStates(net.optimizer)
    return [np.array(v) for v in (*net.weights, *net.optimizer.variables, *own.slots, *own.counters)]


def equal(left, right) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def go_on(net, callbacks=()):
    x, y = tasks.data(RANK)
    net.fit(x, y, batch_size=tasks.BATCH, shuffle=False, verbose=0, callbacks=list(callbacks))


@pytest.mark.parametrize("kind", KINDS)
def test_a_commit_has_each_rank_s_own_momenta(kind):
    net = tasks.model()
    net.compile(KINDS[kind](), loss="mse")
    state = elastic.KerasState(net, epoch=0)
    start = everything(net)
    go_on(net, [elastic.UpdateEpochStateCallback(state)])
    assert state.epoch == 1
    state.restore()
    assert state.epoch == 0 and equal(everything(net), start)
    go_on(net, [elastic.UpdateEpochStateCallback(state)])
    state.commit()
    committed, slots = everything(net), OptimizerStates(net.optimizer).slots
    before = [slot.numpy() for slot in slots]
    go_on(net)
    state.epoch = 7
    assert not any(np.array_equal(a, b) for a, b in zip(slots, before, strict=True))
    state.restore()
    assert state.epoch == 1 and equal(everything(net), committed)
    # All have rank 0's weights and values, and their own momenta, which then are what a failure goes back to.
    for v in net.trainable_variables:
        v.assign(v + 1 + RANK)
    state.epoch += RANK
    own = [slot.numpy() for slot in OptimizerStates(net.optimizer).slots]
    weights = MPI.COMM_WORLD.bcast(tasks.values(net))
    state.sync()
    synchronised = everything(net)
    assert state.epoch == 1 and equal(tasks.values(net), weights)
    assert equal([slot.numpy() for slot in OptimizerStates(net.optimizer).slots], own)
    assert len(set(MPI.COMM_WORLD.allgather(own[0].tobytes()))) == SIZE
    go_on(net)
    state.restore()
    assert equal(everything(net), synchronised)


@pytest.mark.ranks(3)  # one that joins, and two whose momenta have a mean
@pytest.mark.parametrize("kind", KINDS)
def test_who_joins_gets_the_mean_and_the_others_keep_their_own(kind):
    def begin():
        net = tasks.model()
        net.compile(KINDS[kind](), loss="mse")
        return net, elastic.KerasState(net, epoch=0)

    net, state = begin()
    go_on(net)
    mine = [slot.numpy() for slot in OptimizerStates(net.optimizer).slots]
    if RANK == LAST:  # a process of its own that has just begun
        net, state = begin()
    everyone = MPI.COMM_WORLD.allgather(mine)
    state.reset()
    state.sync()
    for i, (slot, own) in enumerate(zip(OptimizerStates(net.optimizer).slots, mine, strict=True)):
        if RANK == LAST:
            np.testing.assert_allclose(slot, np.mean([m[i] for m in everyone[:LAST]], axis=0), rtol=1e-5, atol=1e-8)
        else:
            np.testing.assert_array_equal(slot, own)
    go_on(net)
    tasks.assert_replicas_identical(tasks.values(net))


def test_a_reset_drops_sums_and_asks_anew():
    """Half a vote is void; what was traced is for the ranks of that time."""
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD(1.0), backward_passes_per_step=2)
    net = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    net.compile(optimizer, loss=lambda y, out: tf.reduce_sum(y * out))
    state = elastic.KerasState(net)

    def batch(gradient):
        net.fit(np.ones((1, 1)), np.full((1, 1), gradient, np.float32), verbose=0)

    batch(-1.0), batch(-1.0)
    function = net.train_function
    batch(100.0)
    state.reset()
    assert net.train_function is not function
    assert optimizer.vote_statistics().step == 1 and np.isnan(optimizer.vote_statistics().mean_agreement)
    batch(-1.0)
    np.testing.assert_array_equal(tasks.values(net)[0], [[2.0]])


class Commits:
    """What a state's callback asks of it."""

    def __init__(self):
        self.epoch, self.commits = 0, 0

    def commit(self):
        self.commits += 1


@pytest.mark.ranks(1)  # each rank for itself
def test_how_often_is_committed():
    state, commits = Commits(), []
    callback = elastic.CommitStateCallback(state, batches_per_commit=2)
    for _ in range(2):  # training anew counts anew
        callback.on_train_begin()
        for batch in range(5):
            callback.on_train_batch_end(batch)
            commits.append(state.commits)
        callback.on_epoch_end(0)
    assert commits == [0, 1, 1, 2, 2, 3, 4, 4, 5, 5] and state.commits == 6


@pytest.mark.ranks(1)  # an error that is raised here
@pytest.mark.parametrize("error", [tf.errors.UnknownError, tf.errors.AbortedError])
def test_what_is_taken_for_the_loss_of_a_rank(error):
    with pytest.raises(HorovodInternalError, match="has been shut down"), horovods_failures():
        raise error(None, None, "Horovod has been shut down")
    with pytest.raises(error), horovods_failures():
        raise error(None, None, "out of memory")
    with pytest.raises(ValueError), horovods_failures():
        raise ValueError("Horovod is not initialized")
    assert hvd.is_initialized()


@pytest.mark.parametrize("way", ["initial_epoch", "fewer epochs"])
def test_epochs_and_batches_are_counted_across_resets(way):
    """`fit` goes on with the epoch's number, or counts from 0 the epochs that are left, as in Horovod's example."""
    net = tasks.model()
    net.compile(hvs.DistributedOptimizer(hvs.SignSGD(0.01)), loss="mse")
    state = elastic.TensorFlowKerasState(net, backend=None, epoch=0, batch=0)
    batches = []
    callbacks = [
        elastic.UpdateBatchStateCallback(state),
        keras.callbacks.LambdaCallback(on_batch_end=lambda batch, logs: batches.append((batch, state.batch))),
        elastic.UpdateEpochStateCallback(state),
    ]
    x, y = tasks.data(RANK)

    def fit(until):
        options = {"initial_epoch": state.epoch, "epochs": until}
        if way == "fewer epochs":
            options = {"epochs": until - state.epoch}
        net.fit(x, y, batch_size=tasks.BATCH, verbose=0, callbacks=callbacks, **options)

    for until in (2, 3, 5):  # a reset in between
        fit(until)
        assert (state.epoch, state.batch) == (until, 0)
    assert len(batches) == 5 * tasks.ROWS // tasks.BATCH and all(batch == noted for batch, noted in batches)
