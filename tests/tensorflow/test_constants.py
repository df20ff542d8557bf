"""Gradients that are constants in a graph, which TensorFlow computes once and for all: votes are taken all the same."""

import numpy as np
import pytest
import tensorflow as tf
from ranks import RANK

import horovod_sign.tensorflow as hvs
from horovod_sign.graphs import programs
from horovod_sign.tensorflow import election

RANKS = (2,)  # one that traces again, and one that does not


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "plain"])
@pytest.mark.parametrize("transport", ["exchange", "counts"])
def test_a_rank_that_traces_again_finds_the_others_voting(transport, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setitem(programs.limits, "small", 0)
    w, compression = tf.Variable(tf.zeros(5 + 64 * compiled)), hvs.Compression.signsgd()
    slope = np.arange(w.shape[0], dtype=np.float32) - 2

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(w * tf.constant(slope))
        tape = hvs.DistributedGradientTape(tape, compression=compression, transport=transport)
        w.assign_sub(tape.gradient(loss, [w])[0])
        return x + 1.0

    for length in (3, 3 + RANK, 3):
        step(tf.zeros(length))
    np.testing.assert_array_equal(w.numpy(), -3 * np.sign(slope))


@pytest.mark.parametrize("transport", ["exchange", "counts"])
def test_a_rank_without_gradients_votes_in_each_bucket(transport, monkeypatch):
    """Ballots that are the same in two messages, which TensorFlow would send as one."""
    monkeypatch.setattr(election, "BUCKET", 64)
    w, compression = [tf.Variable(tf.zeros(70)) for _ in range(2)], hvs.Compression.signsgd()

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(w[0]) - tf.reduce_sum(w[1]) if RANK == 0 else tf.constant(1.0)
        tape = hvs.DistributedGradientTape(tape, compression=compression, transport=transport)
        return tape.gradient(loss, w)

    for _ in range(2):
        np.testing.assert_array_equal(step(), [[1] * 70, [-1] * 70])
