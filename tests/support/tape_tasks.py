"""Variables whose gradients are noise, different on each rank, for the tests of tapes."""

import numpy as np
import tensorflow as tf
from ranks import RANK, SIZE


class Task:
    """Two variables whose gradients are noise: a momentum has often another sign than the latest of them."""

    def __init__(self, seed=0):
        self._seed = seed
        self.variables = [tf.Variable(np.ones((4, 3), np.float32)), tf.Variable(np.zeros(3, np.float32))]

    def data(self, step, rank, rows=16):
        random = np.random.default_rng([self._seed, step, rank])
        return [random.standard_normal((rows, columns)).astype(np.float32) for columns in (4, 3)]

    def gradients_of_all(self, step, rows=16):
        """For each rank, its gradients at a step."""
        of_all = [self.data(step, rank, rows) for rank in range(SIZE)]
        return [[(x.T @ y).astype(np.float32), y.sum(0)] for x, y in of_all]

    def stepper(self, wrap, in_graph):
        """A function of the step and a number of rows that returns the votes on this rank's gradients."""

        def votes(x, y):
            w, b = self.variables
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum((x @ w + b) * y)
            return wrap(tape).gradient(loss, self.variables)

        run = tf.function(votes) if in_graph else votes
        return lambda step, rows=16: run(*map(tf.constant, self.data(step, RANK, rows)))


def assert_equal(votes, expected):
    for vote, other in zip(votes, expected, strict=True):
        np.testing.assert_array_equal(vote, other)
