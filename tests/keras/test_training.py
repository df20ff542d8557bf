"""Keras 3 models trained by vote under mpirun: replicas bit-identical, and equal to the algorithm in NumPy."""

import horovod.tensorflow as hvd
import keras
import keras_tasks as tasks
import numpy as np
import oracle
import pytest
import tensorflow as tf
from mpi4py import MPI
from ranks import RANK, SIZE, process_sets

import horovod_sign.tensorflow.keras as hvs
from horovod_sign.tensorflow import DistributedGradientTape

RANKS = (2, 3)  # even, where votes tie; odd, with process sets of some ranks

SGD, Adam, Scaled = keras.optimizers.SGD, keras.optimizers.Adam, keras.optimizers.LossScaleOptimizer


def check(optimizer, simulation, **options):
    """Fits the small model: all ranks end alike, and where NumPy ends."""
    net = tasks.model()
    tasks.fit(net, optimizer, **options)
    for value, simulated in zip(tasks.values(net), simulation.train(), strict=True):
        np.testing.assert_allclose(value, simulated, rtol=1e-4, atol=1e-5)
    tasks.assert_replicas_identical(tasks.values(net))


def wrap(optimizer, **options):
    return hvs.DistributedOptimizer(optimizer, **options)


@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize("transport", ["exchange", "counts"])
def test_fit_equals_the_simulation(transport, abstain):
    optimizer = wrap(hvs.Signum(0.01, 0.5, weight_decay=0.1), transport=transport, abstain=abstain)
    check(optimizer, tasks.Simulation(beta=0.5, weight_decay=0.1, abstain=abstain))


CASES = {
    "signsgd": (lambda: wrap(hvs.SignSGD(0.01)), {}, {}),
    "sgd": (lambda: wrap(SGD(0.01)), {}, {}),
    "signum compression": (lambda: wrap(SGD(0.01), compression=hvs.Compression.signum(0.9)), {"beta": 0.9}, {}),
    "eager": (lambda: wrap(hvs.Signum(0.01, 0.9)), {"beta": 0.9}, {"run_eagerly": True}),
    "several steps a call": (lambda: wrap(hvs.Signum(0.01, 0.9)), {"beta": 0.9}, {"steps_per_execution": 3}),
    "accumulation": (
        lambda: wrap(hvs.Signum(0.01, 0.5, gradient_accumulation_steps=2)),
        {"beta": 0.5, "accumulate": 2},
        {},
    ),
    "passes": (lambda: wrap(SGD(0.01), backward_passes_per_step=3), {"accumulate": 3}, {}),
    "loss scale factor": (lambda: wrap(SGD(0.01, loss_scale_factor=64.0)), {}, {}),
    "loss scale": (lambda: wrap(Scaled(hvs.Signum(0.01, 0.5), initial_scale=1024.0)), {"beta": 0.5}, {}),
    "loss scale, accumulation": (
        lambda: wrap(Scaled(SGD(0.01, gradient_accumulation_steps=2), initial_scale=1024.0)),
        {"accumulate": 2},
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_fit_equals_the_simulation_with(case):
    make, simulation, options = CASES[case]
    check(make(), tasks.Simulation(**simulation), **options)


def test_without_the_reduction_the_check_fails():
    """The check of all these tests is one that an optimizer without votes does not pass."""
    if SIZE == 1:
        pytest.skip("one rank needs no reduction")
    with pytest.raises(AssertionError):
        check(hvs.Signum(0.01, 0.5), tasks.Simulation(beta=0.5))
    MPI.COMM_WORLD.Barrier()


def test_adam_gets_votes_as_gradients():
    """Adam with clipping on the votes equals Adam fed with the oracle's votes."""
    net, twin = tasks.model(), tasks.model()
    optimizer, plain = wrap(Adam(0.01, clipnorm=0.5)), Adam(0.01, clipnorm=0.5)
    random = [np.random.default_rng([5, rank]) for rank in range(SIZE)]
    for _ in range(4):
        of_all = [[r.standard_normal(v.shape).astype(np.float32) for v in net.trainable_variables] for r in random]
        optimizer.apply([tf.constant(g) for g in of_all[RANK]], net.trainable_variables)
        votes = [oracle.vote(ballots).astype(np.float32) for ballots in zip(*of_all, strict=True)]
        plain.apply([tf.constant(v) for v in votes], twin.trainable_variables)
    for value, other in zip(tasks.values(net), tasks.values(twin), strict=True):
        np.testing.assert_array_equal(value, other)


def apply_to(optimizer, variables, gradients, in_graph=True):
    def apply():
        optimizer.apply(gradients, variables)

    (tf.function(apply) if in_graph else apply)()


@pytest.mark.parametrize("inner", ["sgd", "signum"])
def test_overflow_on_one_rank_abstains_and_lowers_its_scale(inner):
    if SIZE == 1:
        pytest.skip("one rank alone leaves the step out")
    optimizer = wrap(Scaled(SGD(1.0) if inner == "sgd" else hvs.Signum(1.0, 0.5), initial_scale=4.0))
    x = keras.Variable([0.0, 0.0, 0.0])
    # Rank 0 overflows at its first coordinate, and would be outvoted nowhere else if it voted alone.
    mine = [np.inf, 8.0, 8.0] if RANK == 0 else [4.0, -4.0, 0.0]
    apply_to(optimizer, [x], [tf.constant(mine, tf.float32)])
    np.testing.assert_array_equal(x.numpy(), [-1.0, 1.0, 0.0])
    assert float(optimizer.dynamic_scale.numpy()) == (2.0 if RANK == 0 else 4.0)
    assert int(optimizer.iterations.numpy()) == 1
    if inner == "signum":
        momentum = optimizer.inner_optimizer.momentum_of([x]).slots[0].numpy()
        np.testing.assert_array_equal(momentum, [0, 0, 0] if RANK == 0 else [0.5, -0.5, 0])


@pytest.mark.parametrize("abstain", [True, False])
def test_overflow_on_all_ranks_leaves_the_step_out(abstain):
    optimizer = wrap(Scaled(hvs.SignSGD(1.0), initial_scale=4.0), abstain=abstain)
    x = keras.Variable([0.0, 0.0])
    apply_to(optimizer, [x], [tf.constant([np.nan, 1.0], tf.float32)])
    np.testing.assert_array_equal(x.numpy(), [0.0, 0.0])
    assert float(optimizer.dynamic_scale.numpy()) == 2.0
    assert int(optimizer.iterations.numpy()) == 0


def test_overflow_abstains_in_the_one_bit_vote_too():
    if SIZE != 2:
        pytest.skip("the other rank alone decides")
    optimizer = wrap(Scaled(SGD(1.0), initial_scale=1.0), abstain=False)
    x = keras.Variable([0.0, 0.0])
    apply_to(optimizer, [x], [tf.constant([np.inf, 1.0] if RANK == 0 else [-1.0, -1.0], tf.float32)])
    np.testing.assert_array_equal(x.numpy(), [1.0, 1.0])


def stepper(optimizer, x):
    """A traced step on one gradient."""
    return tf.function(lambda g: optimizer.apply([g], [x]))


@pytest.mark.parametrize("kind", ["SignSGD", "Signum"])
def test_nan_and_inf_gradients_of_one_rank(kind):
    """NaN abstains and is counted, an infinity has its sign, neither enters a momentum."""
    optimizer = wrap(hvs.Signum(1.0, 0.5) if kind == "Signum" else hvs.SignSGD(1.0))
    x = keras.Variable(np.zeros(40, np.float32))
    step, random, broken = stepper(optimizer, x), np.random.default_rng(11), RANK == SIZE - 1
    expected, m, counted = np.zeros(40), np.zeros((SIZE, 40), np.float32), []
    for number in range(4):
        g = random.standard_normal((SIZE, 40)).astype(np.float32)
        g[-1, number : number + 3] = [np.nan, np.inf, -np.inf]
        step(tf.constant(g[RANK]))
        finite = np.isfinite(g)
        m = np.where(finite, m / 2 + np.where(finite, g, 0) / 2, m)
        expected -= oracle.vote(np.where(finite, m, g) if kind == "Signum" else g)
        counted.append(optimizer.vote_statistics().nans)
    np.testing.assert_array_equal(x.numpy(), expected)
    assert counted == [broken] * 4 and optimizer.vote_statistics().total_nans == 4 * broken


HOSTILE = {
    "flipped": lambda g: -g,
    "random": lambda g: tf.random.normal(g.shape),
    "constant": tf.ones_like,
    "silent": tf.zeros_like,
    "nan": lambda g: tf.fill(g.shape, np.nan),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_just_under_half_of_the_ranks_are_hostile(kind):
    """A linear regression is learnt all the same."""
    hostile = RANK >= SIZE - (SIZE - 1) // 2
    truth = np.random.default_rng(7).standard_normal((20, 1)).astype(np.float32)
    w, random = keras.Variable(np.zeros((20, 1), np.float32)), np.random.default_rng([8, RANK])
    optimizer = wrap(hvs.Signum(0.05))
    step = stepper(optimizer, w)
    for number in range(120):
        optimizer.learning_rate = 0.05 * (1 - number / 120)  # signs do not shrink near the optimum
        x = random.standard_normal((64, 20)).astype(np.float32)
        g = tf.constant(2 / 64 * x.T @ (x @ (w.numpy() - truth)))
        step(HOSTILE[kind](g) if hostile else g)
    tasks.assert_replicas_identical([w.numpy()])
    assert np.linalg.norm(w.numpy() - truth) < 0.1 * np.linalg.norm(truth)


def test_joined_ranks_abstain_with_counts():
    """Uneven data: rank r has r + 1 steps and then joins, so in the end the last rank votes alone."""
    of_all = [oracle.gradients(rank, 100, np.float32) for rank in range(SIZE)]
    x, values = keras.Variable(np.zeros(100, np.float32)), []
    step = stepper(wrap(hvs.SignSGD(1.0), transport="counts"), x)
    for _ in range(1 + RANK):
        step(tf.constant(of_all[RANK]))
        values.append(x.numpy())
    hvd.join()
    votes = [oracle.vote(of_all[number:]) for number in range(1 + RANK)]
    np.testing.assert_array_equal(values, -np.cumsum(votes, 0))


@pytest.mark.parametrize("in_graph", [True, False], ids=["graph", "eager"])
def test_missing_and_sparse_gradients(in_graph):
    optimizer = wrap(hvs.SignSGD(1.0))
    table, unused, rare = keras.Variable(np.zeros((4, 2))), keras.Variable([3.0]), keras.Variable([0.0])
    sparse = tf.IndexedSlices(tf.ones((2, 2)), tf.constant([1, 1]), tf.constant([4, 2]))
    rare_gradient = tf.constant([-1.0]) if RANK == 0 else None
    apply_to(optimizer, [table, unused, rare], [sparse, None, rare_gradient], in_graph)
    np.testing.assert_array_equal(table.numpy(), [[0, 0], [-1, -1], [0, 0], [0, 0]])
    np.testing.assert_array_equal(unused.numpy(), [3.0])
    np.testing.assert_array_equal(rare.numpy(), [1.0])


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_mixed_precision(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        net = keras.Sequential(
            [keras.Input((4,)), keras.layers.Embedding(9, 3), keras.layers.Flatten(), keras.layers.Dense(2)]
        )
    finally:
        keras.config.set_dtype_policy(before)
    optimizer = hvs.Signum(0.01)
    net.compile(wrap(Scaled(optimizer) if policy == "mixed_float16" else optimizer), loss="mse")
    random = np.random.default_rng(RANK)
    callback = hvs.callbacks.BroadcastGlobalVariablesCallback(0)
    net.fit(random.integers(0, 9, (16, 4)), random.random((16, 2)), batch_size=8, verbose=0, callbacks=[callback])
    tasks.assert_replicas_identical([v.numpy() for v in net.weights])


def test_loss_scaling_around_a_distributed_optimizer_is_refused():
    """It would wait for ever where one rank overflows; Keras itself does it to models of policy mixed_float16."""
    with pytest.raises(ValueError, match=r"use hvs\.DistributedOptimizer\(LossScaleOptimizer"):
        Scaled(wrap(SGD(0.01)))


@pytest.mark.parametrize("what", ["shape", "number", "order", "dtype", "options"])
def test_different_variables_are_an_error_on_all_ranks(what):
    if SIZE == 1:
        pytest.skip("one rank agrees with itself")
    odd = RANK == SIZE - 1
    shapes, dtype = {"v0": (3, 4), "v1": (5,)}, "float64" if odd and what == "dtype" else "float32"
    if odd and what == "shape":
        shapes["v1"] = (6,)
    if odd and what == "number":
        shapes["v2"] = (7,)
    names = sorted(shapes, reverse=bool(odd and what == "order"))
    variables = [keras.Variable(np.zeros(shapes[name]), dtype=dtype, name=name) for name in names]
    optimizer = wrap(hvs.SignSGD(1.0), abstain=not (odd and what == "options"))
    brought = {
        "shape": r"v1 float32 \(6,\)",
        "number": "3 variables",
        "order": r"2 variables\nv1 .*\nv0 ",
        "dtype": "v0 float64",
        "options": "abstain=False",
    }
    with pytest.raises(ValueError, match=rf"(?s)all ranks must bring the same.* rank {SIZE - 1}: .*{brought[what]}"):
        optimizer.apply([tf.ones(v.shape, v.dtype) for v in variables], variables)


def test_process_sets():
    if SIZE < 3:
        pytest.skip("a set of two ranks needs a third")
    with process_sets(hvd, [0, 1], range(2, SIZE)) as (pair, others):
        mine = pair if RANK < 2 else others  # both vote at once, each on its own
        of_set = [oracle.gradients(rank, 500, np.float32) for rank in mine.ranks]
        y = keras.Variable(np.zeros(500, np.float32))
        apply_to(wrap(hvs.SignSGD(1.0), process_set=mine), [y], [tf.constant(of_set[mine.rank()])])
        np.testing.assert_array_equal(y.numpy(), -oracle.vote(of_set))
        x = tf.Variable([1.0, -1.0, float(RANK) - 0.5, 0.0])

        def gradient():
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(x * x) / 2
            return DistributedGradientTape(tape, process_set=pair).gradient(loss, [x])[0]

        if RANK < 2:
            np.testing.assert_array_equal(gradient(), [1, -1, 0, 0])
        else:
            with pytest.raises(ValueError, match="not in the process set"):
                gradient()


def test_callbacks():
    """Broadcast from the last rank, mean metrics, and a warm-up of the learning rate, batch by batch."""
    net = tasks.model()
    for v in net.trainable_variables:
        v.assign(v + RANK)
    rates = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: rates.append(float(net.optimizer.learning_rate.numpy()))
    )
    start = MPI.COMM_WORLD.bcast(tasks.values(net), SIZE - 1)
    warmup = hvs.callbacks.LearningRateWarmupCallback(0.01, warmup_epochs=1)
    callbacks = [
        hvs.callbacks.BroadcastGlobalVariablesCallback(SIZE - 1),
        keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: [
                np.testing.assert_array_equal(*pair) for pair in zip(tasks.values(net), start, strict=True)
            ]
        ),
        hvs.callbacks.MetricAverageCallback(),
        warmup,
        record,
    ]
    history = tasks.fit(net, wrap(hvs.Signum(0.01)), callbacks).history
    tasks.assert_replicas_identical([v.numpy() for v in [*net.weights, net.optimizer.iterations]])
    tasks.assert_replicas_identical([np.array(history["loss"])])
    steps = tasks.ROWS // tasks.BATCH
    expected = [0.01 / SIZE * (1 + (batch + 1) / steps * (SIZE - 1)) for batch in range(steps)] + [0.01] * steps
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_saved_on_one_rank_and_loaded_on_all(tmp_path):
    path = MPI.COMM_WORLD.bcast(str(tmp_path / "model.keras"))
    net = tasks.model()
    tasks.fit(net, wrap(hvs.Signum(0.01, 0.5)), epochs=1)
    if RANK == 0:
        net.save(path)
    MPI.COMM_WORLD.Barrier()
    loaded = hvs.load_model(path)
    assert type(loaded.optimizer).__name__ == "Signum" and loaded.optimizer.momentum == 0.5
    assert int(loaded.optimizer.iterations.numpy()) == tasks.ROWS // tasks.BATCH
    x, y = tasks.data(RANK)
    loaded.fit(x, y, batch_size=tasks.BATCH, shuffle=False, verbose=0)
    tasks.assert_replicas_identical(tasks.values(loaded))
