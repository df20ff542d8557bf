"""Layers frozen, and models compiled anew with the optimizer that they have; also on one rank alone."""

import keras
import keras_tasks as tasks
import numpy as np
import oracle
import pytest
import tensorflow as tf
from ranks import LAST, RANK, SIZE

import horovod_sign.tensorflow.keras as hvs
from horovod_sign.tensorflow import election
from horovod_sign.voting.nodes import OVERRIDE

RANKS = (2,)  # each with momenta of its own

pytestmark = pytest.mark.fault("frozen")

KINDS = {
    "SignSGD": (lambda: hvs.SignSGD(1.0), {}, 0.0),
    "Signum": (lambda: hvs.Signum(1.0, 0.5), {}, 0.5),
    "SGD by momenta": (lambda: keras.optimizers.SGD(1.0), {"compression": hvs.Compression.signum(0.5)}, 0.5),
    "loss scale": (lambda: keras.optimizers.LossScaleOptimizer(hvs.Signum(1.0, 0.5), initial_scale=4.0), {}, 0.5),
}
ALL, SOME = (0, 1, 2), (0, 2)


SHAPES = [(3,), (70,), (2, 2)]


def variables():
    return [keras.Variable(np.zeros(shape, np.float32), name=f"v{i}") for i, shape in enumerate(SHAPES)]


def gradients(rank, step):
    random = np.random.default_rng([9, rank, step])
    return [random.standard_normal(shape).astype(np.float32) for shape in SHAPES]


class Steps:
    """Steps on some of three variables, really and in NumPy."""

    def __init__(self, optimizer, beta=0.0, passes=1):
        self.optimizer, self.x, self.number = optimizer, variables(), 0
        optimizer.build(self.x)
        self._beta, self._passes, self._traced = beta, passes, {}
        self.expected = [np.zeros(v.shape, np.float32) for v in self.x]
        self._m = [[np.zeros(v.shape, np.float32) for v in self.x] for _ in range(SIZE)]
        self._sums = [[np.zeros(v.shape, np.float32) for v in self.x] for _ in range(SIZE)]

    def take(self, which):
        """One pass with the variables of these numbers."""
        if which not in self._traced:  # as fit does, once for each time that the model is compiled
            self._traced[which] = tf.function(lambda g: self.optimizer.apply(g, [self.x[i] for i in which]))
        mine = gradients(RANK, self.number)
        self._traced[which]([tf.constant(mine[i]) * self._scale() for i in which])
        for rank in range(SIZE):
            for i in which:
                self._sums[rank][i] += gradients(rank, self.number)[i]
        self.number += 1
        if self.number % self._passes == 0:
            self._step(which)

    def _scale(self):
        return self.optimizer.dynamic_scale.numpy() if hasattr(self.optimizer, "dynamic_scale") else 1.0

    def _step(self, which):
        for i in which:
            for rank in range(SIZE):
                g = self._sums[rank][i] / np.float32(self._passes)
                self._m[rank][i] = np.float32(self._beta) * self._m[rank][i] + np.float32(1 - self._beta) * g
            self.expected[i] -= oracle.vote([self._m[rank][i] for rank in range(SIZE)])
        self._sums = [[np.zeros(v.shape, np.float32) for v in self.x] for _ in range(SIZE)]

    def check(self):
        for v, expected in zip(self.x, self.expected, strict=True):
            np.testing.assert_array_equal(v.numpy(), expected)


@pytest.mark.parametrize(
    ("transport", "kind"), [*(("exchange", kind) for kind in KINDS), ("counts", "Signum"), ("counts", "loss scale")]
)
def test_another_list_of_variables(kind, transport):
    """Frozen, unfrozen, and in turn: each variable has its own momentum, and votes when it is trained."""
    make, options, beta = KINDS[kind]
    steps = Steps(hvs.DistributedOptimizer(make(), transport=transport, **options), beta)
    for which in (ALL, ALL, SOME, SOME, ALL, SOME, (1,)):
        steps.take(which)
    steps.check()
    assert steps.optimizer.vote_statistics().step == 7


@pytest.mark.parametrize("kind", ["Signum", "SGD"])
def test_sums_of_gradients_belong_to_their_variables(kind):
    """With accumulation: layers are frozen between two passes that are summed, as in Keras."""
    inner = hvs.Signum(1.0, 0.5, gradient_accumulation_steps=2) if kind == "Signum" else keras.optimizers.SGD(1.0)
    passes = {} if kind == "Signum" else {"backward_passes_per_step": 2}
    steps = Steps(hvs.DistributedOptimizer(inner, **passes), 0.5 if kind == "Signum" else 0.0, passes=2)
    for which in (ALL, ALL, ALL, SOME, SOME, SOME):
        steps.take(which)
    steps.check()


@pytest.mark.limit(180)  # compiles three times
@pytest.mark.parametrize("optimizer", [lambda: hvs.Signum(0.01, 0.5), lambda: keras.optimizers.AdamW(0.01)])
def test_fit_with_layers_frozen_and_unfrozen(optimizer):
    keras.utils.set_random_seed(1)
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5), keras.layers.Dense(3)])
    wrapped, first = hvs.DistributedOptimizer(optimizer()), net.layers[0]
    tasks.fit(net, wrapped, epochs=1)
    for frozen in (True, False):
        first.trainable = not frozen
        before, last = [w.numpy() for w in first.weights], net.layers[1].weights[0].numpy()
        tasks.fit(net, wrapped, epochs=1)
        still = [np.array_equal(w.numpy(), b) for w, b in zip(first.weights, before, strict=True)]
        assert still == [frozen] * 2 and not np.array_equal(net.layers[1].weights[0].numpy(), last)
        tasks.assert_replicas_identical([w.numpy() for w in net.weights])


ALONE = {
    "frozen": ("Signum", 2**24),
    "unfrozen": ("Signum", 2**24),
    "unknown": ("Signum", 2**24),
    "loss scale": ("loss scale", 2**24),
    "several buckets": ("SignSGD", 64),
}


WAYS = [(what, {"transport": transport}) for what in ALONE for transport in ("exchange", "counts")]
WAYS += [(what, {"hierarchical": True}) for what in ("loss scale", "several buckets")]  # nodes of two ranks and of one


@pytest.mark.ranks(3)  # two go on, whose vote would be decided; one alone votes without messages
@pytest.mark.parametrize(("what", "options"), WAYS, ids=str)
def test_on_one_rank_alone_is_an_error_on_all_ranks(what, options, monkeypatch):
    """Instead of a wait for ever: of this rank for the others to agree, of them for its vote."""
    kind, bucket = ALONE[what]
    monkeypatch.setattr(election, "BUCKET", bucket)
    monkeypatch.setenv(OVERRIDE, f"node{RANK == LAST}")
    steps = Steps(hvs.DistributedOptimizer(KINDS[kind][0](), **options))
    usual, other = (SOME, ALL) if what == "unfrozen" else (ALL, SOME)
    steps.take(usual)
    if what == "unknown" and RANK == LAST:
        steps.x[1] = keras.Variable(np.zeros(70, np.float32), name="new")
        usual = other = (1, 2)
    errors = (ValueError, tf.errors.InvalidArgumentError)
    with pytest.raises(errors, match=r"changed on some ranks.*on all ranks alike"):
        steps.take(other if RANK == LAST else usual)


def test_unknown_variables_are_an_error_on_all_ranks():
    """Layers that are new, or that were frozen when the optimizer was built."""
    steps = Steps(hvs.DistributedOptimizer(hvs.SignSGD(1.0)))
    steps.take(ALL)
    if RANK == LAST:
        steps.x[0] = keras.Variable(np.zeros(3, np.float32), name="new")
    with pytest.raises(ValueError, match=f"rank {LAST} cannot vote: new is not among the variables.* new optimizer"):
        steps.take((0, 2))
