"""Keras models that are not plain, under mpirun: each step is the vote of all ranks' gradients, by NumPy."""

import keras
import keras_tasks as tasks
import numpy as np
import oracle
import pytest
import tensorflow as tf
from mpi4py import MPI
from ranks import RANK

import horovod_sign.tensorflow.keras as hvs

RANKS = (3,)  # a majority, and a rank that differs

LR = 0.25


def batch(step: int, width: int = 4) -> tf.Tensor:
    """A batch of this rank's own."""
    return tf.constant(np.random.default_rng([step, RANK]).standard_normal((6, width)).astype(np.float32))


def gradients_of(net, x, clip=None):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(net(x, training=True) - 1.0))
    variables = [v.value for v in net.trainable_variables]
    gradients = tape.gradient(loss, variables)
    return gradients if clip is None else [tf.clip_by_value(g - 0.01, 0.0, clip) for g in gradients]


def train(net, optimizer, steps=3, make_batch=batch, **options):
    """Steps of a loop of one's own, each checked against the vote of all ranks' gradients."""
    for step in range(steps):
        before = tasks.values(net)
        gradients = gradients_of(net, make_batch(step), **options)
        optimizer.apply(gradients, net.trainable_variables)
        of_all = MPI.COMM_WORLD.allgather([tf.convert_to_tensor(g).numpy() for g in gradients])
        votes = [oracle.vote(ballots) for ballots in zip(*of_all, strict=True)]
        for value, x, vote in zip(tasks.values(net), before, votes, strict=True):
            np.testing.assert_array_equal(value, x - np.float32(LR) * vote.astype(np.float32))
    tasks.assert_replicas_identical(tasks.values(net))


def wrap():
    return hvs.DistributedOptimizer(hvs.SignSGD(LR))


@pytest.fixture(autouse=True)
def same_weights_on_all_ranks():
    keras.utils.set_random_seed(1)


def network(*layers, width=4):
    return keras.Sequential([keras.Input((width,)), *layers])


@pytest.mark.fault("frozen")
def test_frozen_layers_stay():
    net = network(keras.layers.Dense(5), keras.layers.Dense(2))
    net.layers[0].trainable = False
    frozen = net.layers[0].kernel.numpy().copy()
    train(net, wrap())
    np.testing.assert_array_equal(net.layers[0].kernel.numpy(), frozen)


@pytest.mark.fault("tied")
def test_tied_variables_vote_once():
    """A layer that is used twice: one vote on the sum of both gradients."""
    shared = keras.layers.Dense(4)
    net = network(shared, keras.layers.Activation("tanh"), shared)
    assert len(net.trainable_variables) == 2
    train(net, wrap())


@pytest.mark.fault("unseen")
def test_dead_units_and_unseen_embeddings_do_not_move():
    embedding = keras.layers.Embedding(10, 3)
    net = network(embedding, keras.layers.Flatten(), keras.layers.Dense(4, activation="relu"), width=2)
    net(tf.zeros((1, 2)))
    net.layers[-1].bias.assign(np.array([-1e3, 0, 0, 0], np.float32))  # its first unit is never active
    start = tasks.values(net)
    words = lambda step: tf.constant([[1, 2], [3, 1 + RANK % 2]])  # noqa: E731
    train(net, wrap(), make_batch=words)
    rows, kernel, bias = (new - old for new, old in zip(tasks.values(net), start, strict=True))
    assert not rows[[0, *range(4, 10)]].any() and rows[1:4].any()
    assert not kernel[:, 0].any() and not bias[0] and kernel[:, 1:].any()


@pytest.mark.fault("clipping")
def test_gradients_clipped_before_the_vote():
    """What a loop does with gradients counts: here half of them become zeros, which abstain."""
    train(network(keras.layers.Dense(3)), wrap(), clip=0.1)


@pytest.mark.fault("two-models")
def test_two_models_and_optimizers_in_turn():
    nets = [network(keras.layers.Dense(3)), network(keras.layers.Dense(5), keras.layers.Dense(2))]
    optimizers = [wrap(), wrap()]
    for step in range(3):
        for net, optimizer in zip(nets, optimizers, strict=True):
            train(net, optimizer, steps=1, make_batch=lambda _, step=step: batch(step))
