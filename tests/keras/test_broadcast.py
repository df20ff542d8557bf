"""`hvs.broadcast_variables`: eagerly and in graphs, in pieces, and where ranks bring different variables."""

import horovod.tensorflow as hvd
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_tasks import assert_replicas_identical
from ranks import RANK, SIZE

import horovod_sign.tensorflow.keras as hvs
from horovod_sign.tensorflow import broadcasting

RANKS = (2,)  # one gives, one takes

ROOT = SIZE - 1


def make(rank):
    """Variables of many dtypes, one of them empty, with values of a rank."""
    random = np.random.default_rng([7, rank])
    return [
        keras.Variable(random.standard_normal((5, 7)).astype(np.float32)),
        tf.Variable(random.integers(0, 99, 3)),
        tf.Variable(random.random(21) < 0.5),
        keras.Variable(random.standard_normal((3, 3)), dtype="bfloat16"),
        tf.Variable(np.zeros((0, 3))),
        tf.Variable(random.standard_normal(())),
        tf.Variable(random.standard_normal(40)),
        tf.Variable(random.integers(0, 99, 33).astype(np.uint8)),
    ]


def values(variables):
    return [np.asarray(v.numpy()) for v in variables]


def check(*groups, root=ROOT):
    """All ranks now have in each group what `make` gave the root."""
    for group in groups:
        for value, expected in zip(values(group), values(make(root)), strict=True):
            np.testing.assert_array_equal(value, expected)


@pytest.mark.fault("broadcasts")
@pytest.mark.parametrize("piece", [12, 2**28])
@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
def test_in_pieces(piece, in_graph, monkeypatch):
    """No message is longer than a piece, or one element, wherever a piece ends."""
    sizes = []

    def spy(tensor, *args, **kwargs):
        sizes.append(tensor.shape.num_elements() * tensor.dtype.size)
        return hvd_broadcast(tensor, *args, **kwargs)

    hvd_broadcast = hvd.broadcast
    monkeypatch.setattr(hvd, "broadcast", spy)
    monkeypatch.setattr(broadcasting, "PIECE", piece, raising=False)
    variables = make(RANK)

    def share():
        sizes.clear()  # a function that makes variables is traced twice
        hvs.broadcast_variables(variables, ROOT)

    (tf.function(share) if in_graph else share)()
    check(variables)
    assert max(sizes) <= piece and sum(sizes) == sum(v.nbytes for v in values(variables))


@pytest.mark.fault("broadcasts")
@pytest.mark.parametrize("condition", ["Python's", "a tensor's"])
def test_in_the_first_batch_of_a_traced_loop(condition):
    """As in Horovod's example: weights, and then the optimizer's state, in a branch of a tf.function."""
    first, second = make(RANK), make(RANK)

    @tf.function
    def step(x, first_batch):
        if first_batch:
            hvs.broadcast_variables(first, ROOT)
            hvs.broadcast_variables(second, root_rank=0)
        return x + tf.cast(second[1][0], x.dtype)

    for batch in range(3):
        result = step(tf.constant(1.0), batch == 0 if condition == "Python's" else tf.constant(batch == 0))
        second[1].assign_add([1, 1, 1])
        assert float(result) == 1 + batch + make(0)[1].numpy()[0]  # what comes after the broadcast sees it
    second[1].assign_sub([3, 3, 3])
    check(first)
    check(second, root=0)


def test_functions_in_functions_do_not_mix():
    """Their messages have the same names, so they must not be on their way together."""
    groups = [make(RANK) for _ in range(4)]

    def of(group):
        return tf.function(lambda: hvs.broadcast_variables(group, ROOT))

    functions = [of(group) for group in groups]

    @tf.function
    def all_of_them():
        for function in functions:
            function()

    all_of_them()
    check(*groups)


def test_ranks_that_trace_again_alone():
    """A rank traces a function again, for a shape of its own: others take no part in that."""
    variables = make(RANK)

    @tf.function
    def step(x):
        hvs.broadcast_variables(variables, ROOT)
        return x + 1.0

    for length in (3, 3 + RANK):
        step(tf.zeros(length))
    check(variables)


def test_different_variables_are_an_error_on_all_ranks():
    variables = [tf.Variable(tf.zeros(3 + RANK))]

    def share():
        hvs.broadcast_variables(variables)

    words = r"(?s)all ranks must bring the same.*float32 \(3,\).*float32 \(4,\)"
    with pytest.raises(ValueError, match=words):
        share()
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        tf.function(share)()
    with pytest.raises(ValueError, match="all ranks must bring the same"):
        hvs.broadcast_variables(variables[RANK:])  # rank 1 brings none
    assert_replicas_identical([variables[0].numpy()[:3]])


def test_no_variables_at_all_is_said():
    with pytest.warns(UserWarning, match="not built yet has none"):
        hvs.broadcast_variables(keras.Sequential([keras.layers.Dense(1)]).weights)


def test_inside_xla_is_refused():
    variables = make(RANK)
    with pytest.raises(ValueError, match="jit_compile=False"):
        tf.function(lambda: hvs.broadcast_variables(variables), jit_compile=True)()
