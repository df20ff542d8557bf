"""Loss scaling among ranks of which one is broken, or has joined: each rank's scale is its own affair."""

import keras
import keras_tasks as tasks
import numpy as np
import oracle
import pytest
import tensorflow as tf
from ranks import LAST, RANK, SIZE

import horovod_sign.tensorflow.keras as hvs

RANKS = (3,)  # two of three outvote one

pytestmark = pytest.mark.fault("overflow")

SGD, Scaled = keras.optimizers.SGD, keras.optimizers.LossScaleOptimizer
START = 64.0


def scaled(make, **options):
    return hvs.DistributedOptimizer(Scaled(make(), initial_scale=START), **options)


def stepper(optimizer, x):
    """Traced steps, as a scaled loss gives them, on gradients of the loss itself."""
    optimizer.build([x])
    return tf.function(lambda g: optimizer.apply([g * optimizer.dynamic_scale], [x]))


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("make", [lambda: SGD(1.0), lambda: hvs.Signum(1.0, 0.5)], ids=["SGD", "Signum"])
def test_a_rank_that_always_overflows_is_outvoted(make, bad):
    """The scales of the others stay; its own falls, but not to 0, and it votes again once it is well."""
    optimizer, x = scaled(make), keras.Variable(np.zeros(30, np.float32))
    step, beta = stepper(optimizer, x), 0.0 if isinstance(optimizer.inner_optimizer, SGD) else 0.5
    expected, m = np.zeros(30), np.zeros((SIZE, 30), np.float32)
    for number, g in enumerate(np.random.default_rng(1).standard_normal((14, SIZE, 30)).astype(np.float32)):
        ill = number < 10
        mine = g[RANK].copy()
        if ill and RANK == LAST:
            mine[0] = bad
        step(tf.constant(mine))
        new = np.float32(beta) * m + np.float32(1 - beta) * g
        m = np.where(ill & (np.arange(SIZE) == LAST)[:, None], m, new)
        expected -= oracle.vote([r for rank, r in enumerate(m) if not (ill and rank == LAST)])
    np.testing.assert_array_equal(x.numpy(), expected)
    assert float(optimizer.dynamic_scale.numpy()) == (1.0 if RANK == LAST else START)
    assert int(optimizer.iterations.numpy()) == 14


def test_scales_grow_on_each_rank_by_itself():
    optimizer = hvs.DistributedOptimizer(Scaled(hvs.SignSGD(1.0), initial_scale=START, dynamic_growth_steps=3))
    x = keras.Variable(np.zeros(2, np.float32))
    step, scales = stepper(optimizer, x), []
    for number in range(7):
        step(tf.constant([np.inf if RANK == LAST and number == 1 else 1.0, 1.0]))
        scales.append(float(optimizer.dynamic_scale.numpy()) / START)
    well, ill = [1, 1, 2, 2, 2, 4, 4], [1, 0.5, 0.5, 0.5, 1, 1, 1]
    assert scales == (ill if RANK == LAST else well)
    np.testing.assert_array_equal(x.numpy(), [-7, -7])


def test_scales_that_are_no_powers_of_two_give_the_same_steps():
    """With accumulation, where votes are multiplied by the passes: the replicas are the same bit for bit."""
    inner = SGD(0.1, gradient_accumulation_steps=3)
    optimizer = hvs.DistributedOptimizer(Scaled(inner, initial_scale=[1000.0, 0.1, 7.3][RANK % 3]))
    x = keras.Variable(np.zeros(20, np.float32))
    step, expected, plain = stepper(optimizer, x), keras.Variable(np.zeros(20, np.float32)), SGD(0.1)
    gradients = np.random.default_rng(2).standard_normal((6, SIZE, 20)).astype(np.float32)
    for g in gradients:
        step(tf.constant(g[RANK]))
    for passes in (gradients[:3], gradients[3:]):
        plain.apply([tf.constant(oracle.vote(passes.sum(0)).astype(np.float32))], [expected])
    np.testing.assert_allclose(x.numpy(), expected.numpy(), rtol=1e-6)
    tasks.assert_replicas_identical([x.numpy()])


def test_an_overflow_of_all_ranks_in_the_last_pass_leaves_the_sums():
    inner = hvs.SignSGD(1.0, gradient_accumulation_steps=2)
    optimizer, x = hvs.DistributedOptimizer(Scaled(inner, initial_scale=START)), keras.Variable(np.zeros(2, np.float32))
    step = stepper(optimizer, x)
    for g in ([3.0, -3.0], [np.nan, 1.0], [-1.0, 1.0]):
        step(tf.constant(g))
    np.testing.assert_array_equal(x.numpy(), [-1.0, 1.0])
    assert int(optimizer.iterations.numpy()) == 1 and float(optimizer.dynamic_scale.numpy()) == START / 2


def test_ranks_that_have_joined_do_not_lower_the_scale():
    of_all = [oracle.gradients(rank, 50, np.float32, edges=False) for rank in range(SIZE)]
    optimizer, x = scaled(lambda: hvs.SignSGD(1.0), transport="counts"), keras.Variable(np.zeros(50, np.float32))
    tasks.assert_joined_ranks_abstain(stepper(optimizer, x), x, of_all)
    assert float(optimizer.dynamic_scale.numpy()) == START
