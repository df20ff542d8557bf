"""Many models in one process, and what TensorFlow can be told to look at in every operation."""

import gc
import weakref

import keras
import keras_tasks as tasks
import numpy as np
import oracle
import pytest
import tensorflow as tf
from ranks import RANK, SIZE
from tensorflow.python.framework.func_graph import FuncGraph

import horovod_sign.tensorflow as hvs_tf
import horovod_sign.tensorflow.keras as hvs
from horovod_sign.graphs import programs

RANKS = (2,)  # one rank alone has no messages to compile programs for

pytestmark = pytest.mark.fault("search")


def drawn(rank, shape):
    return np.random.default_rng([6, rank, *shape]).standard_normal(shape).astype(np.float32)


def trial(width, transport="auto", **options):
    """One model of a search, which is gone afterwards: what is left of it, and whether its votes were right."""
    x = [keras.Variable(np.zeros(shape, np.float32)) for shape in ((3, width), (width,))]
    optimizer = hvs.DistributedOptimizer(hvs.Signum(1.0, 0.5), transport=transport, **options)
    step = tf.function(lambda gradients: optimizer.apply(gradients, x))
    step([tf.constant(drawn(RANK, v.shape)) for v in x])
    for v in x:
        votes = oracle.vote([drawn(rank, v.shape) for rank in range(SIZE)], options.get("abstain", True))
        np.testing.assert_array_equal(v.numpy(), -votes)
    return [weakref.ref(each) for each in (optimizer, x[0].value)]


OPTIMIZERS = {
    "SignSGD": lambda: hvs.DistributedOptimizer(hvs.SignSGD(0.01), transport="exchange"),
    "Signum": lambda: hvs.DistributedOptimizer(hvs.Signum(0.01), transport="counts"),
    "loss scale": lambda: hvs.DistributedOptimizer(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01))),
}


def graphs():
    """The graphs of all functions that TensorFlow has traced in this process and not let go."""
    gc.collect()
    return {id(each) for each in gc.get_objects() if isinstance(each, FuncGraph)}


@pytest.mark.fault("lifetimes")
@pytest.mark.fault("search")
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_model_leaves_no_graph_behind(kind):
    """Neither of its training step nor of anything in it, when it is dropped; helpers for tensors of a shape stay."""
    left = []
    for _ in range(2):
        net = tasks.model()
        tasks.fit(net, OPTIMIZERS[kind](), epochs=1)
        del net
        left.append(graphs())
    assert left[1] <= left[0]


@pytest.mark.limit(120)
def test_a_search_over_models_compiles_no_more_than_it_can_afford(monkeypatch):
    """A program that XLA has compiled stays for as long as the process: after so many, nothing new is compiled."""
    compiled = []
    monkeypatch.setitem(programs.limits, "small", programs._compiled["small"] + 6)
    for width in range(200, 204):
        left = trial(width)
        gc.collect()
        assert [ref() for ref in left] == [None, None]
        compiled.append(programs._compiled["small"])
    assert compiled[-1] == compiled[2] == programs.limits["small"]


@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize("transport", ["exchange", "counts"])
def test_what_is_not_compiled_votes_alike(transport, abstain, monkeypatch):
    """Bit for bit, whichever rank has had so many models: here one compiles and the other does not."""
    monkeypatch.setitem(programs.limits, "small", 10**6 if RANK == 0 else 0)
    trial(300 + len(transport), transport, abstain=abstain)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_what_is_not_compiled_votes_alike_in_every_dtype(dtype, monkeypatch):
    monkeypatch.setitem(programs.limits, "small", 0)
    gradients = [oracle.gradients(rank, 333, oracle.DTYPES[0] if dtype == "float16" else np.float32) for rank in (0, 1)]
    gradients = [tf.cast(tf.constant(g), dtype) for g in gradients]
    x = tf.Variable(tf.zeros(333, dtype))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.where(tf.math.is_finite(gradients[RANK]), gradients[RANK], 0) * x)
    tape = hvs_tf.DistributedGradientTape(tape, compression=hvs_tf.Compression.signum(0.5))
    finite = [np.where(np.isfinite(g.numpy().astype(float)), g.numpy().astype(np.float32), 0) for g in gradients]
    votes = tape.gradient(loss, [x])[0].numpy().astype(float)
    np.testing.assert_array_equal(votes, oracle.vote([m * np.float32(0.5) for m in finite]))


@pytest.mark.fault("check-numerics")
@pytest.mark.parametrize("how", ["fit", "tape", "counts"])
def test_check_numerics(how):
    """`tf.debugging.enable_check_numerics()` looks at the user's operations; it cannot look into a compiled program."""
    tf.debugging.enable_check_numerics()
    try:
        if how == "tape":
            x = tf.Variable(tf.ones(77))
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(x * x)
            tape = hvs_tf.DistributedGradientTape(tape, compression=hvs_tf.Compression.signum())
            np.testing.assert_array_equal(tape.gradient(loss, [x])[0].numpy(), 1)
        else:
            net = tasks.model()
            transport = "counts" if how == "counts" else "exchange"
            tasks.fit(net, hvs.DistributedOptimizer(hvs.Signum(0.01), transport=transport), epochs=1)
            tasks.assert_replicas_identical(tasks.values(net))
    finally:
        tf.debugging.disable_check_numerics()
