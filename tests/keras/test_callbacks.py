"""Callbacks on ranks, by themselves: what they broadcast, average, set and print."""

import horovod.tensorflow as hvd
import keras
import keras_tasks as tasks
import numpy as np
import pytest
from mpi4py import MPI
from ranks import LAST, RANK, SIZE, process_sets

import horovod_sign.tensorflow.keras as hvs
from horovod_sign.tensorflow.keras.states import OptimizerStates

RANKS = (2,)  # two that differ

pytestmark = pytest.mark.fault("schedulers")


def compiled(optimizer=None):
    net = tasks.model()
    net.compile(optimizer or hvs.DistributedOptimizer(hvs.SignSGD(0.5)), loss="mse")
    return net


def begin(callback, net, **params):
    callback.set_model(net)
    callback.set_params(params)
    callback.on_train_begin()
    return callback


@pytest.mark.quick
def test_metrics_become_means():
    logs = {"loss": 1.0 + RANK, "b": 4.0 * RANK, "a": -1.0}
    callback = hvs.callbacks.MetricAverageCallback()
    callback.on_epoch_end(0, logs)
    assert logs == {"loss": 1.0 + (SIZE - 1) / 2, "b": 4.0 * (SIZE - 1) / 2, "a": -1.0}
    with pytest.raises(ValueError, match=r"the list of metrics is loss on ranks? 0.* and loss, mine on rank 1"):
        callback.on_epoch_end(1, {"loss": 1.0, **({"mine": 1.0} if RANK == 1 else {})})
    callback.on_epoch_end(2, None)


@pytest.mark.limit(30)  # where the rank that cannot take part does not say so, the other waits for it
def test_a_metric_that_is_no_number_is_an_error_on_all_ranks():
    with pytest.raises(ValueError, match=r"rank 1.*could not convert string to float"):
        hvs.callbacks.MetricAverageCallback().on_epoch_end(0, {"loss": "none yet" if RANK == 1 else 1.0})


@pytest.mark.limit(30)  # where ranks are not asked first, the one with a momentum waits for the other
def test_momenta_that_only_some_ranks_have_are_not_shared():
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD(0.5) if RANK == 1 else hvs.Signum(0.5, 0.5))
    net = compiled(optimizer)
    optimizer.build(net.trainable_variables)
    optimizer.iterations.assign(1)
    with pytest.raises(ValueError, match=r"momentum 0 is .* on rank 0 and nothing more on rank 1"):
        begin(hvs.callbacks.BroadcastGlobalVariablesCallback(0), net)


@pytest.mark.ranks(3)  # a set of two of them
@pytest.mark.limit(30)  # where the other is asked too, they wait for it
def test_within_a_process_set():
    net = compiled()
    for v in net.trainable_variables:
        v.assign(v + RANK)
    start = MPI.COMM_WORLD.allgather(tasks.values(net))
    with process_sets(hvd, [1, 2]) as (pair,):
        if RANK:
            logs = {"loss": float(RANK)}
            hvs.callbacks.MetricAverageCallback(process_set=pair).on_epoch_end(0, logs)
            assert logs == {"loss": 1.5}
            begin(hvs.callbacks.BroadcastGlobalVariablesCallback(2, process_set=pair), net)
    for value, expected in zip(tasks.values(net), start[2 if RANK else 0], strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.quick
def test_all_start_as_the_root_does_but_for_their_momenta():
    optimizer = hvs.DistributedOptimizer(hvs.Signum(0.5, 0.5))
    net = tasks.model()
    tasks.fit(net, optimizer, epochs=1)
    for v in net.trainable_variables:
        v.assign(v + RANK)
    optimizer.learning_rate = 0.25 * (1 + RANK)
    optimizer.iterations.assign(5 + RANK)
    root = MPI.COMM_WORLD.bcast(tasks.values(net), LAST)
    own = [slot.numpy() for slot in OptimizerStates(optimizer).slots]
    callback = hvs.callbacks.BroadcastGlobalVariablesCallback(LAST)
    x, y = tasks.data(RANK)
    rates = []
    look = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: rates.append(
            (float(optimizer.learning_rate.numpy()), int(optimizer.iterations.numpy()), tasks.values(net))
        )
    )
    net.fit(x, y, batch_size=tasks.ROWS, verbose=0, callbacks=[callback, look])
    ((rate, iterations, weights),) = rates
    assert (rate, iterations) == (0.25 * (1 + LAST), 5 + LAST)
    for value, expected in zip(weights, root, strict=True):
        np.testing.assert_array_equal(value, expected)
    tasks.assert_replicas_identical(tasks.values(net))
    assert len(set(MPI.COMM_WORLD.allgather(own[0].tobytes()))) == SIZE


SCHEDULES = {
    "by epochs": ({"multiplier": lambda epoch: 1 + epoch}, [[1, 1], [2, 2], [3, 3], [4, 4]]),
    "a number": ({"multiplier": 3}, [[3, 3]] * 4),
    "for some epochs": (
        {"multiplier": lambda epoch: 2.0 + epoch, "start_epoch": 1, "end_epoch": 3},
        [[9, 9], [3, 3], [4, 4], [4, 4]],
    ),
    "by batches": (
        {"multiplier": lambda epoch: 2 * epoch, "staircase": False, "end_epoch": 2},
        [[0, 1], [2, 3], [3, 3], [3, 3]],
    ),
    "by batches of a known number": (
        {"multiplier": lambda epoch: 4 * epoch, "staircase": False, "steps_per_epoch": 4},
        [[0, 1], [4, 5], [8, 9], [12, 13]],
    ),
}


@pytest.mark.ranks(1)  # each rank for itself
@pytest.mark.parametrize("case", SCHEDULES)
def test_schedules(case):
    options, expected = SCHEDULES[case]
    net = compiled()
    net.optimizer.learning_rate = 9 * 0.5
    callback = begin(hvs.callbacks.LearningRateScheduleCallback(0.5, **options), net, steps=2)
    for epoch, rates in enumerate(expected):
        callback.on_epoch_begin(epoch)
        for batch, rate in enumerate(rates):
            callback.on_train_batch_begin(batch)
            assert float(net.optimizer.learning_rate.numpy()) == 0.5 * rate, (epoch, batch)
        logs = {}
        callback.on_epoch_end(epoch, logs)
        assert logs == {"lr": 0.5 * rates[-1]}


@pytest.mark.ranks(1)  # each rank for itself
def test_schedules_that_are_refused():
    with pytest.raises(ValueError, match="momentum_correction"):
        hvs.callbacks.LearningRateScheduleCallback(0.5, 1, momentum_correction=True)
    with pytest.raises(ValueError, match="give it steps_per_epoch"):
        begin(hvs.callbacks.LearningRateWarmupCallback(0.5), compiled(), steps=None)


def test_warmup_rises_batch_by_batch_and_rank_0_says_when_it_ends(capsys):
    net, size = compiled(), SIZE
    callback = begin(hvs.callbacks.LearningRateWarmupCallback(0.5, warmup_epochs=2, verbose=1), net, steps=2)
    said = []
    for epoch in range(3):
        callback.on_epoch_begin(epoch)
        for batch in range(2):
            callback.on_train_batch_begin(batch)
            done = min((epoch + (batch + 1) / 2) / 2, 1)
            np.testing.assert_allclose(net.optimizer.learning_rate.numpy(), 0.5 / size * (1 + done * (size - 1)))
        callback.on_epoch_end(epoch)
        said.append(capsys.readouterr().out)
    text = "Epoch 2: finished gradual learning rate warmup to 0.5.\n"
    assert said == ["", text if RANK == 0 else "", ""]
