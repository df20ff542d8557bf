"""LossScaleOptimizer inside of the votes, against NumPy: who overflows abstains; each scale is its rank's."""

import horovod.tensorflow as hvd
import keras
import keras_tasks as tasks
import numpy as np
import pytest
import tensorflow as tf
from ranks import RANK, SIZE, process_sets
from simulation import SIGNSGD, Workers, signum

import horovod_sign.tensorflow.keras as hvs

RANKS = (2,)  # one that overflows and one that does not

pytestmark = pytest.mark.fault("overflow")

N = 6
# Who overflows in a step: nobody often enough for the scale to grow, one rank just before it would, the other, both.
STEPS = [(), (), (), (0,), (), (1,), (), (0, 1), (), ()]


def scaled(inner, **options):
    return keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0, **options)


KINDS = {
    "SignSGD": (lambda: hvs.SignSGD(1.0), SIGNSGD, {}),
    "Signum, one bit": (lambda: hvs.Signum(1.0, 0.5), signum(0.5), {"abstain": False}),
    "SGD": (lambda: keras.optimizers.SGD(1.0), signum(0.5), {"compression": hvs.Compression.signum(0.5)}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_steps_and_scales_equal_the_simulation(kind):
    make, rule, options = KINDS[kind]
    optimizer = hvs.DistributedOptimizer(scaled(make(), dynamic_growth_steps=2), **options)
    x = keras.Variable(np.zeros(N, np.float32))
    optimizer.build([x])
    step = tf.function(lambda g: optimizer.apply([g], [x]))
    workers, expected, scale, counter, steps = Workers([x.numpy()], SIZE, rule), np.zeros(N), 4.0, 0, 0
    for number, silent in enumerate(STEPS):
        of_all = [np.random.default_rng([number, rank]).standard_normal(N).astype(np.float32) for rank in range(SIZE)]
        mine = of_all[RANK] * np.float32(scale)
        mine[number % N] = np.inf if RANK in silent else mine[number % N]
        step(tf.constant(mine))
        if len(silent) < SIZE:
            steps += 1
            votes = workers.votes([[None if rank in silent else g] for rank, g in enumerate(of_all)])[0]
            expected -= votes if options.get("abstain", True) else np.where(votes == 0, 1, votes)
        counter = 0 if RANK in silent else counter + 1
        scale = scale / 2 if RANK in silent else scale * 2 if counter == 2 else scale
        counter %= 2
        np.testing.assert_array_equal(x.numpy(), expected)
        assert float(optimizer.dynamic_scale.numpy()) == scale, number
        assert int(optimizer.step_counter.numpy()) == counter, number
        assert int(optimizer.iterations.numpy()) == steps
    for slot in tasks.momenta(optimizer):
        np.testing.assert_array_equal(slot, workers.m[RANK][0])


# One pass that overflows on rank 0; both of its passes; then none.
PASSES = [(), (0,), (), (), (0,), (0,), (1,), (), (), ()]


@pytest.mark.parametrize("kind", ["SignSGD", "Signum, one bit"])
def test_passes_that_overflow_do_not_enter_the_sums(kind):
    """A rank abstains, and keeps its momentum, where all passes of a vote overflowed."""
    make, rule, options = KINDS[kind]
    optimizer = hvs.DistributedOptimizer(scaled(make()), backward_passes_per_step=2, **options)
    x = keras.Variable(np.zeros(N, np.float32))
    optimizer.build([x])
    step = tf.function(lambda g: optimizer.apply([g], [x]))
    workers, expected, scale = Workers([x.numpy()], SIZE, rule), np.zeros(N), 4.0
    for vote in range(len(PASSES) // 2):
        sums, heard = np.zeros((SIZE, N), np.float32), [False] * SIZE
        for number in (2 * vote, 2 * vote + 1):
            of_all = np.random.default_rng(number).standard_normal((SIZE, N)).astype(np.float32)
            mine = of_all[RANK] * np.float32(scale)
            step(tf.constant(np.full(N, np.nan, np.float32) if RANK in PASSES[number] else mine))
            for rank in set(range(SIZE)) - set(PASSES[number]):
                sums[rank] += of_all[rank]
                heard[rank] = True
            scale = max(scale / 2, 1.0) if RANK in PASSES[number] else scale  # not below 1 while others vote
        votes = workers.votes([[s / 2 if h else None] for s, h in zip(sums, heard, strict=True)])[0]
        expected -= votes if options.get("abstain", True) else np.where(votes == 0, 1, votes)
        np.testing.assert_array_equal(x.numpy(), expected)
        assert float(optimizer.dynamic_scale.numpy()) == scale
    for slot in tasks.momenta(optimizer):
        np.testing.assert_array_equal(slot, workers.m[RANK][0])


@pytest.mark.ranks(3)  # a set of two of them
@pytest.mark.limit(30)  # where the other is asked too, they wait for it
def test_overflow_in_a_process_set_concerns_its_ranks_only():
    with process_sets(hvd, [1, 2]) as (pair,):
        if RANK:
            optimizer = hvs.DistributedOptimizer(scaled(hvs.SignSGD(1.0)), process_set=pair)
            x = keras.Variable([0.0, 0.0])
            for overflows in (RANK == 1, True, False):
                optimizer.apply([tf.constant([np.inf if overflows else 1.0, -1.0], tf.float32)], [x])
            np.testing.assert_array_equal(x.numpy(), [-2, 2])
            assert float(optimizer.dynamic_scale.numpy()) == (1.0 if RANK == 1 else 2.0)
