"""Tapes whose list of variables changes, as when layers are frozen: momenta belong to variables, not to lists."""

import numpy as np
import oracle
import pytest
import tensorflow as tf
from ranks import LAST, RANK, SIZE

import horovod_sign.tensorflow as hvs

RANKS = (2,)  # each has momenta of its own

ALL, SOME = (0, 1, 2), (2, 0)
SHAPES = [(3,), (70,), (2, 2)]


def gradients(rank, step):
    random = np.random.default_rng([12, rank, step])
    return [random.standard_normal(shape).astype(np.float32) for shape in SHAPES]


class Loop:
    """A loop of one's own on some of three variables, whose gradients are what they are said to be."""

    def __init__(self, compression, in_graph, **options):
        self.x = [tf.Variable(tf.zeros(shape), name=f"v{i}") for i, shape in enumerate(SHAPES)]
        self._compression, self._in_graph, self._options = compression, in_graph, options
        self._steps = {}

    def votes(self, which, step):
        def run(given):
            with tf.GradientTape() as tape:
                loss = tf.add_n([tf.reduce_sum(x * g) for x, g in zip(self.x, given, strict=True)])
            tape = hvs.DistributedGradientTape(tape, compression=self._compression, **self._options)
            return tape.gradient(loss, [self.x[i] for i in which])

        if which not in self._steps:
            self._steps[which] = tf.function(run) if self._in_graph else run
        return [v.numpy() for v in self._steps[which]([tf.constant(g) for g in gradients(RANK, step)])]


@pytest.mark.parametrize("in_graph", [True, False], ids=["graph", "eager"])
def test_momenta_and_warm_up_go_on_with_other_lists_of_variables(in_graph):
    compression = hvs.Compression.signum(0.5, warmup=True)  # one step
    loop, m = Loop(compression, in_graph), [[np.zeros(s, np.float32) for s in SHAPES] for _ in range(SIZE)]
    for step, which in enumerate((ALL, ALL, SOME, SOME, ALL, (1,), ALL)):
        voted = []
        for i in which:
            for rank in range(SIZE):
                m[rank][i] = np.float32(0.5) * m[rank][i] + np.float32(0.5) * gradients(rank, step)[i]
            voted.append(oracle.vote([m[rank][i] if step else gradients(rank, step)[i] for rank in range(SIZE)]))
        for got, expected in zip(loop.votes(which, step), voted, strict=True):
            np.testing.assert_array_equal(got, expected)
    assert compression.vote_statistics().step == 7


@pytest.mark.parametrize("transport", ["exchange", "counts"])
@pytest.mark.parametrize("in_graph", [True, False], ids=["graph", "eager"])
def test_on_one_rank_alone_is_an_error_on_all_ranks(in_graph, transport):
    loop = Loop(hvs.Compression.signsgd(), in_graph, transport=transport)
    loop.votes(ALL, 0)
    errors = (ValueError, tf.errors.InvalidArgumentError)
    with pytest.raises(errors, match=r"changed on some ranks.*on all ranks alike"):
        loop.votes(SOME if RANK == LAST else ALL, 1)


def test_one_traced_function_takes_other_variables_later():
    """Its first trace suffices, and a later one may meet variables that have not been voted on yet."""
    compression, x = hvs.Compression.signum(0.5), [tf.Variable(tf.zeros(3)) for _ in range(2)]

    @tf.function
    def step(which, gradient):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(x[which] * gradient)
        tape = hvs.DistributedGradientTape(tape, compression=compression, backward_passes_per_step=2)
        return tape.gradient(loss, [x[which]])[0]

    for which in (0, 1):
        passes = [step(which, tf.constant([1.0, -1.0, 0.0])).numpy() for _ in range(2)]
        np.testing.assert_array_equal(passes, [[0, 0, 0], [1, -1, 0]])
        assert step.experimental_get_tracing_count() == 1 + which
