"""Tapes in loops of one's own whose loss a Keras optimizer has scaled: votes have no scale, overflows are seen."""

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from ranks import LAST, RANK, SIZE

import horovod_sign.tensorflow as hvs

RANKS = (2,)  # votes tie; where a rank overflows, of two the other decides alone, and of three the vote of two may tie

pytestmark = pytest.mark.fault("scaled-tape")

SGD, Scaled = keras.optimizers.SGD, keras.optimizers.LossScaleOptimizer
OPTIMIZERS = {
    "dynamic": lambda: Scaled(SGD(1.0), initial_scale=1024.0),
    "dynamic, odd": lambda: Scaled(SGD(1.0), initial_scale=1000.0),
    "fixed": lambda: SGD(1.0, loss_scale_factor=64.0),
    "none": lambda: SGD(1.0),
}


class Loop:
    """A loop of one's own, on a loss whose gradient is what it is given."""

    def __init__(self, optimizer, compression=None, in_graph=True, scaled=lambda loss: loss, n=40, **options):
        self.x, self.optimizer = keras.Variable(np.zeros(n, np.float32)), optimizer
        self._compression, self._scaled, self._options = compression, scaled, options
        self.step = tf.function(self._step) if in_graph else self._step

    def _step(self, g):
        with tf.GradientTape() as tape:
            loss = self._scaled(self.optimizer.scale_loss(tf.reduce_sum(self.x * g)))
        tape = hvs.DistributedGradientTape(tape, compression=self._compression, **self._options)
        self.optimizer.apply(tape.gradient(loss, [self.x.value]), [self.x])


def drawn(steps, n=40):
    """The gradients of each step and rank."""
    return np.random.default_rng(4).standard_normal((steps, SIZE, n)).astype(np.float32)


def votes(gradients, beta=0.0):
    """The sum of the votes of all steps; NaN and infinities of a rank count nothing at all in their step."""
    total, m = np.zeros(gradients.shape[2]), np.zeros(gradients.shape[1:], np.float32)
    for g in gradients:
        finite = np.isfinite(g).all(1, keepdims=True)
        m = np.where(finite, np.float32(beta) * m + np.float32(1 - beta) * np.where(finite, g, 0), m)
        total += oracle.vote(np.where(finite, m, 0))
    return total


@pytest.mark.parametrize("in_graph", [True, False], ids=["graph", "eager"])
@pytest.mark.parametrize("beta", [None, 0.5], ids=["signsgd", "signum"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_votes_are_not_divided_by_the_scale(kind, beta, in_graph):
    """And momenta are of gradients without the scale: it changes between steps."""
    compression = None if beta is None else hvs.Compression.signum(beta)
    loop, gradients = Loop(OPTIMIZERS[kind](), compression, in_graph), drawn(5)
    for number, of_ranks in enumerate(gradients):
        loop.step(tf.constant(of_ranks[RANK]))
        if number == 2 and kind.startswith("dynamic"):
            loop.optimizer.dynamic_scale.assign(2.0)
    np.testing.assert_array_equal(loop.x.numpy(), -votes(gradients, beta or 0.0))


@pytest.mark.parametrize("in_graph", [True, False], ids=["graph", "eager"])
def test_a_loss_that_was_computed_on_after_it_was_scaled(in_graph):
    loop, gradients = Loop(OPTIMIZERS["dynamic"](), None, in_graph, lambda loss: loss / 2 + 1.0), drawn(3)
    for of_ranks in gradients:
        loop.step(tf.constant(of_ranks[RANK]))
    np.testing.assert_array_equal(loop.x.numpy(), -votes(gradients))


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("beta", [None, 0.5], ids=["signsgd", "signum"])
@pytest.mark.parametrize("built", [True, False], ids=["built", "not built"])
def test_a_rank_that_overflows_abstains_and_lowers_its_own_scale(built, beta):
    compression = None if beta is None else hvs.Compression.signum(beta)
    loop, gradients = Loop(OPTIMIZERS["dynamic"](), compression), drawn(4)
    if built:
        loop.optimizer.build([loop.x])
    gradients[2, LAST, 3] = np.inf
    for of_ranks in gradients:
        loop.step(tf.constant(of_ranks[RANK]))
    np.testing.assert_array_equal(loop.x.numpy(), -votes(gradients, beta or 0.0))
    assert float(loop.optimizer.dynamic_scale.numpy()) == (512.0 if RANK == LAST else 1024.0)
    assert int(loop.optimizer.step_counter.numpy()) == (1 if RANK == LAST else 4)
    assert int(loop.optimizer.iterations.numpy()) == 4


def test_an_overflow_before_the_optimizer_has_variables_leaves_the_step_out():
    """In an eager loop the first gradients come before it is built: nobody steps, and all lower the scale."""
    loop, gradients = Loop(OPTIMIZERS["dynamic"](), None, False), drawn(2)
    gradients[0, LAST, 0] = np.nan
    for of_ranks in gradients:
        loop.step(tf.constant(of_ranks[RANK]))
    np.testing.assert_array_equal(loop.x.numpy(), -votes(gradients[1:]))
    assert float(loop.optimizer.dynamic_scale.numpy()) == 512.0


def test_an_overflow_on_all_ranks_leaves_the_step_out():
    loop, gradients = Loop(OPTIMIZERS["dynamic"](), hvs.Compression.signum(0.5)), drawn(4)
    gradients[1, :, 0] = np.inf
    for of_ranks in gradients:
        loop.step(tf.constant(of_ranks[RANK]))
    np.testing.assert_array_equal(loop.x.numpy(), -votes(gradients[[0, 2, 3]], 0.5))
    assert float(loop.optimizer.dynamic_scale.numpy()) == 512.0
    assert int(loop.optimizer.iterations.numpy()) == 3


@pytest.mark.ranks(3)  # two outvote it
def test_a_rank_that_is_always_nan_is_outvoted():
    loop, gradients = Loop(OPTIMIZERS["dynamic"](), None), drawn(14)
    gradients[:12, LAST, 0] = np.nan
    for of_ranks in gradients:
        loop.step(tf.constant(of_ranks[RANK]))
    np.testing.assert_array_equal(loop.x.numpy(), -votes(gradients))
    assert float(loop.optimizer.dynamic_scale.numpy()) == (1.0 if RANK == LAST else 1024.0)


@pytest.mark.ranks(2, 3)
def test_several_passes_of_a_scaled_loss():
    """A pass that overflows on all ranks is none; one that does so on one rank adds nothing there."""
    loop, gradients = Loop(OPTIMIZERS["dynamic"](), None, backward_passes_per_step=2), drawn(5)
    gradients[1, :, 0] = np.inf
    gradients[3, LAST, 0] = np.nan
    for of_ranks in gradients:
        loop.step(tf.constant(of_ranks[RANK]))
    third, fourth = gradients[3].copy(), gradients[4]
    third[LAST] = 0
    expected = oracle.vote(gradients[0] + gradients[2]).astype(float) + oracle.vote(third + fourth)
    np.testing.assert_array_equal(loop.x.numpy(), -expected)


def test_two_scaled_losses_at_once():
    """As in a GAN: each tape finds the optimizer of its own loss."""
    optimizers = [OPTIMIZERS["dynamic"](), Scaled(SGD(1.0), initial_scale=8.0)]
    x = [keras.Variable(np.zeros(9, np.float32)) for _ in optimizers]
    gradients = drawn(3, 9)

    @tf.function
    def step(g):
        with tf.GradientTape(persistent=True) as tape:
            losses = [o.scale_loss(s * tf.reduce_sum(v * g)) for o, v, s in zip(optimizers, x, (1, -1), strict=True)]
        tape = hvs.DistributedGradientTape(tape)
        for optimizer, v, loss in zip(optimizers, x, losses, strict=True):
            optimizer.apply(tape.gradient(loss, [v.value]), [v])

    for of_ranks in gradients:
        step(tf.constant(of_ranks[RANK]))
    np.testing.assert_array_equal(x[0].numpy(), -votes(gradients))
    np.testing.assert_array_equal(x[1].numpy(), votes(gradients))
