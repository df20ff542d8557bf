"""A small Keras model, data that differ from rank to rank, and its training by vote in NumPy."""

import horovod.tensorflow as hvd
import keras
import numpy as np
import oracle
import simulation
import tensorflow as tf
from mpi4py import MPI
from ranks import RANK, SIZE

from horovod_sign.tensorflow.keras import SignOptimizer
from horovod_sign.tensorflow.keras.distributed import inner_optimizer, is_distributed
from horovod_sign.tensorflow.keras.states import OptimizerStates

ROWS, BATCH, EPOCHS = 24, 8, 2


def data(rank: int):
    """(x, y) of a rank."""
    random = np.random.default_rng([3, rank])
    x = random.standard_normal((ROWS, 4)).astype(np.float32)
    return x, (x.sum(1, keepdims=True) * [1, 2, -1] + 1).astype(np.float32)


def model() -> keras.Model:
    """One dense layer, the same on all ranks."""
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


def fit(net: keras.Model, optimizer, callbacks=(), epochs: int = EPOCHS, **options) -> keras.callbacks.History:
    """Trains on this rank's data by mean squared error, in order."""
    net.compile(optimizer, loss="mse", **options)
    x, y = data(RANK)
    return net.fit(x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks))


def values(net: keras.Model) -> list[np.ndarray]:
    """Copies of the trainable variables."""
    return [np.array(v.numpy()) for v in net.trainable_variables]


def momenta_of(net: keras.Model) -> list[np.ndarray]:
    """Copies of what a model's optimizer keeps for votes on this rank."""
    return [np.array(slot.numpy()) for slot in OptimizerStates(net.optimizer).slots]


def momenta(optimizer) -> list:
    """The variables that this rank votes by, also where steps are accumulated."""
    inner = inner_optimizer(optimizer)
    if isinstance(inner, SignOptimizer) and inner.built:
        return [slot for each in inner.states_of(inner._trainable_variables).slots for slot in each]
    return OptimizerStates(optimizer).slots if is_distributed(optimizer) else []


def assert_joined_ranks_abstain(step, x, of_all):
    """Uneven data: rank r has r + 1 steps and then joins, so in the end the last rank votes alone.

    Args:
        step: takes one by SignSGD(1.0) on a gradient.
        x: the variable, of zeros.
        of_all: the gradient of each rank.
    """
    values = []
    for _ in range(1 + RANK):
        step(tf.constant(of_all[RANK]))
        values.append(x.numpy())
    hvd.join()
    votes = [oracle.vote(of_all[number:]) for number in range(1 + RANK)]
    np.testing.assert_array_equal(values, -np.cumsum(votes, 0))


def assert_replicas_identical(arrays):
    """All ranks have these arrays, bit for bit."""
    of_all = MPI.COMM_WORLD.allgather([np.asarray(a).tobytes() for a in arrays])
    assert all(other == of_all[0] for other in of_all), "the replicas differ"


class Simulation:
    """Training the model by majority vote, as `fit` does.

    Args:
        rule: what the workers vote on.
        accumulate: batches whose mean gradient is voted on.
        nodes: for each rank its node, which has one vote; default: each rank votes.
        options: of `simulation.Simulation`.
    """

    def __init__(self, rule=simulation.SIGNSGD, accumulate: int = 1, nodes=range(SIZE), **options):
        self._nodes = nodes
        self._simulated = simulation.Simulation(values(model()), len(set(nodes)), 0.01, rule, **options)
        self._rule, self._accumulate, self._pending = rule, accumulate, []

    @property
    def momenta(self) -> list[np.ndarray]:
        """This rank's."""
        workers = self._simulated.workers
        if isinstance(self._rule, simulation.Own):
            return [each for of_variable in workers.states[self._nodes[RANK]] for each in of_variable]
        return workers.m[self._nodes[RANK]]

    def train(self, epochs: int = EPOCHS) -> list[np.ndarray]:
        """The variables after training."""
        for _ in range(epochs):
            for start in range(0, ROWS, BATCH):
                self._batch([self._gradients(*(a[start : start + BATCH] for a in data(rank))) for rank in range(SIZE)])
        return self._simulated.x

    def _gradients(self, x, y):
        kernel, bias = self._simulated.x
        error = 2 * (x @ kernel + bias - y) / y.size
        return [x.T @ error, error.sum(0)]

    def _batch(self, of_all):
        self._pending.append(of_all)
        if len(self._pending) < self._accumulate:
            return
        passes = np.float32(self._accumulate)
        means = [
            [sum(of_rank[rank][i] for of_rank in self._pending) / passes for i in range(2)] for rank in range(SIZE)
        ]
        self._simulated.step(simulation.means_by_node(means, self._nodes))
        self._pending = []
