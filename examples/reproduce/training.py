"""A small network that many workers train in one process: gradients by NumPy, rule and vote by the package."""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ballots import Voters

from horovod_sign import rules

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data


class Method(NamedTuple):
    """How a step is made of the workers' gradients.

    Attributes:
        name: to be printed.
        rule: what each worker votes on; None: the mean of gradients is taken.
        momentum: of SGD.
        adam: whether the mean goes into Adam, (0.9, 0.999).
        decay: decoupled, of a vote's step.
        noise: standard deviation of noise that each worker adds to what it votes on.
        abstain: False: one-bit votes.
    """

    name: str
    rule: rules.Rule | None = None
    momentum: float = 0.0
    adam: bool = False
    decay: float = 0.0
    noise: float = 0.0
    abstain: bool = True


class Task(NamedTuple):
    """Images of 14 x 14, flat, float32, and their classes; some to train on, some to test."""

    name: str
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def load(spread: float | None = None) -> Task:
    """Fashion-MNIST, or the digits where that is not found, as means of 2 x 2 pixels; or ten patterns under noise.

    Args:
        spread: of the patterns, noise being 0.3: the less, the harder.
    """
    if spread is not None:
        rng = np.random.default_rng(0)
        y = rng.integers(10, size=1500)
        x = 0.5 + spread * (rng.random((10, 196)) - 0.5)[y] + 0.3 * rng.standard_normal((1500, 196))
        x = x.astype(np.float32)
        return Task("ten patterns under noise", x[:1000], y[:1000], x[1000:], y[1000:])
    found = data.load()
    x, test = (a.reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, 196) for a in (found.train_x, found.test_x))
    return Task(found.name, x, found.train_y, test, found.test_y)


class Network:
    """A perceptron 196-64-10 whose parameters are one vector.

    Attributes:
        flat: the parameters.
    """

    SHAPES = ((196, 64), (64,), (64, 10), (10,))

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        parts = [
            rng.uniform(-1, 1, shape) / np.sqrt(size)
            for shape, size in zip(self.SHAPES, (196, 196, 64, 64), strict=True)
        ]
        self.flat = np.concatenate([p.ravel() for p in parts]).astype(np.float32)

    def _parts(self):
        ends = np.cumsum([np.prod(shape) for shape in self.SHAPES])[:-1]
        return [p.reshape(shape) for p, shape in zip(np.split(self.flat, ends), self.SHAPES, strict=True)]

    def outputs(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        w, b, v, c = self._parts()
        hidden = np.maximum(x @ w + b, 0)
        return hidden, hidden @ v + c

    def gradients(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Of the cross-entropy, for each worker: x of shape (workers, batch, 196) -> (workers, coordinates)."""
        hidden, outputs = self.outputs(x)
        back = np.exp(outputs - outputs.max(-1, keepdims=True))
        back /= back.sum(-1, keepdims=True)
        np.put_along_axis(back, y[..., None], np.take_along_axis(back, y[..., None], -1) - 1, -1)
        back /= x.shape[1]
        below = (back @ self._parts()[2].T) * (hidden > 0)
        found = (x.swapaxes(1, 2) @ below, below.sum(1), hidden.swapaxes(1, 2) @ back, back.sum(1))
        return np.concatenate([g.reshape(len(x), -1) for g in found], 1)

    def accuracy(self, task: Task) -> float:
        """On the test images, in per cent."""
        return 100 * float((self.outputs(task.test_x)[1].argmax(1) == task.test_y).mean())


def train(task: Task, method: Method, lr: float, shards, batch: int, steps: int, seed: int = 0) -> float:
    """Test accuracy of a network that was trained, in per cent.

    Args:
        lr: at the start; it falls to 0 by a cosine.
        shards: for each worker the numbers of the images that it draws from.
        batch: images of a worker in a step.
        seed: of initial weights, batches and noise.
    """
    rng, net = np.random.default_rng(seed), Network(seed)
    step = _stepper(method, len(shards), net.flat.size, rng)
    for k in range(steps):
        chosen = np.stack([rng.choice(shard, batch) for shard in shards])
        gradients = net.gradients(task.train_x[chosen], task.train_y[chosen])
        now = lr * (1 + np.cos(np.pi * k / steps)) / 2
        net.flat -= np.float32(now) * step(gradients, net.flat)
    return net.accuracy(task)


def _stepper(method: Method, workers: int, n: int, rng):
    """What makes a step, to be multiplied by the learning rate, of gradients and parameters."""
    if method.rule is None:
        return _adam(n) if method.adam else _sgd(n, method.momentum)
    voters = Voters(method.rule, workers, n, method.abstain)

    def vote(gradients, parameters):
        if method.noise:
            gradients = gradients + np.float32(method.noise) * rng.standard_normal(gradients.shape, np.float32)
        return voters.vote(gradients) + np.float32(method.decay) * parameters

    return vote


def _sgd(n: int, momentum: float):
    kept = np.zeros(n, np.float32)

    def step(gradients, _):
        kept[:] = momentum * kept + gradients.mean(0)
        return kept

    return step


def _adam(n: int):
    m, v, count = np.zeros(n, np.float32), np.zeros(n, np.float32), [0]

    def step(gradients, _):
        count[0] += 1
        g = gradients.mean(0)
        m[:] = 0.9 * m + 0.1 * g
        v[:] = 0.999 * v + 0.001 * g**2
        return m / (1 - 0.9 ** count[0]) / (np.sqrt(v / (1 - 0.999 ** count[0])) + 1e-8)

    return step


def shuffled(task: Task, workers: int) -> list[np.ndarray]:
    """Shards alike: every so-manieth image."""
    return [np.arange(w, len(task.train_y), workers) for w in range(workers)]


def sorted_by_label(task: Task, workers: int) -> list[np.ndarray]:
    """Shards unlike: the images sorted by class, cut into as many pieces."""
    return np.array_split(np.argsort(task.train_y, kind="stable"), workers)
