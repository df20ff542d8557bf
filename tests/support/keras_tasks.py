"""A small Keras model, data that differ from rank to rank, and its training by vote in NumPy."""

import keras
import numpy as np
import oracle
from mpi4py import MPI
from ranks import RANK, SIZE

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


def assert_replicas_identical(arrays):
    """All ranks have these arrays, bit for bit."""
    of_all = MPI.COMM_WORLD.allgather([np.asarray(a).tobytes() for a in arrays])
    assert all(other == of_all[0] for other in of_all), "the replicas differ"


class Simulation:
    """Training the model by majority vote: x <- x - lr (vote + weight_decay x)."""

    def __init__(self, lr=0.01, beta=0.0, weight_decay=0.0, accumulate=1, abstain=True):
        self.x = values(model())
        self._lr, self._beta, self._decay = np.float32(lr), beta, np.float32(weight_decay)
        self._accumulate, self._abstain = accumulate, abstain
        self._m = [[np.zeros_like(x) for x in self.x] for _ in range(SIZE)]
        self._pending = []

    def train(self, epochs=EPOCHS) -> list[np.ndarray]:
        """The variables after training as `fit` does."""
        for _ in range(epochs):
            for start in range(0, ROWS, BATCH):
                self._batch([self._gradients(*(a[start : start + BATCH] for a in data(rank))) for rank in range(SIZE)])
        return self.x

    def _gradients(self, x, y):
        error = 2 * (x @ self.x[0] + self.x[1] - y) / y.size
        return [x.T @ error, error.sum(0)]

    def _batch(self, of_all):
        self._pending.append(of_all)
        if len(self._pending) < self._accumulate:
            return
        for i, x in enumerate(self.x):
            ballots = [self._ballot(rank, i) for rank in range(SIZE)]
            self.x[i] = x - self._lr * (oracle.vote(ballots, self._abstain) + self._decay * x)
        self._pending = []

    def _ballot(self, rank, i):
        g = sum(of_all[rank][i] for of_all in self._pending) / np.float32(self._accumulate)
        self._m[rank][i] = np.float32(self._beta) * self._m[rank][i] + np.float32(1 - self._beta) * g
        return self._m[rank][i]
