"""Keras 3 models trained by vote under mpirun: replicas bit-identical, and equal to the algorithm in NumPy."""

import horovod.tensorflow as hvd
import keras
import keras_tasks as tasks
import numpy as np
import oracle
import pytest
import tensorflow as tf
import tf_rules
from mpi4py import MPI
from ranks import RANK, SIZE, process_sets
from simulation import LION, SIGNSGD, TWO_MOMENTA, Workers, signum

import horovod_sign.tensorflow.keras as hvs
from horovod_sign.tensorflow import DistributedGradientTape
from horovod_sign.voting.nodes import OVERRIDE

RANKS = (2,)  # votes tie; where an odd number, a majority or a set of some ranks matters, the test says so

SGD, Adam, Scaled = keras.optimizers.SGD, keras.optimizers.Adam, keras.optimizers.LossScaleOptimizer


def check(optimizer, simulated, **options):
    """Fits the small model: all ranks end alike, and where NumPy ends; each with its own momenta."""
    net = tasks.model()
    tasks.fit(net, optimizer, **options)
    for value, expected in zip(tasks.values(net), simulated.train(), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
    tasks.assert_replicas_identical(tasks.values(net))
    slots = tasks.momenta(optimizer)
    for slot, expected in zip(slots, simulated.momenta if slots else (), strict=True):
        np.testing.assert_allclose(slot, expected, rtol=1e-4, atol=1e-5)


def wrap(optimizer, **options):
    return hvs.DistributedOptimizer(optimizer, **options)


@pytest.mark.fault("compiled")
@pytest.mark.quick
@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize("transport", ["exchange", "counts"])
def test_fit_equals_the_simulation(transport, abstain):
    optimizer = wrap(hvs.Signum(0.01, 0.5, weight_decay=0.1), transport=transport, abstain=abstain)
    check(optimizer, tasks.Simulation(HALF, weight_decay=0.1, abstain=abstain))


HALF = signum(0.5)  # the same for all: what is compiled for one serves the others
CASES = {
    "signsgd": (lambda: wrap(hvs.SignSGD(0.01)), {}, {}),
    "sgd": (lambda: wrap(SGD(0.01)), {}, {}),
    "signum compression": (
        lambda: wrap(SGD(0.01), compression=hvs.Compression.signum(0.75, warmup=True)),
        {"rule": signum(0.75, 2)},
        {},
    ),
    "Lion": (lambda: wrap(hvs.Lion(0.01)), {"rule": LION}, {}),
    "lion compression": (lambda: wrap(SGD(0.01), compression=hvs.Compression.lion()), {"rule": LION}, {}),
    "Muon": (lambda: wrap(hvs.SignOptimizer(0.01, tf_rules.Muon())), {"rule": tf_rules.MUON}, {}),
    "a rule's compression": (
        lambda: wrap(SGD(0.01), compression=hvs.Compression.of(tf_rules.TwoMomenta())),
        {"rule": TWO_MOMENTA},
        {},
    ),
    "a rule, loss scale, accumulation": (
        lambda: wrap(
            Scaled(hvs.SignOptimizer(0.01, tf_rules.TwoMomenta(), gradient_accumulation_steps=2), initial_scale=64.0)
        ),
        {"rule": TWO_MOMENTA, "accumulate": 2},
        {},
    ),
    "eager": (lambda: wrap(hvs.Signum(0.01, 0.5)), {"rule": HALF}, {"run_eagerly": True}),
    "several steps a call": (lambda: wrap(hvs.Signum(0.01, 0.5)), {"rule": HALF}, {"steps_per_execution": 3}),
    "accumulation": (
        lambda: wrap(hvs.Signum(0.01, 0.5, gradient_accumulation_steps=2)),
        {"rule": HALF, "accumulate": 2},
        {},
    ),
    "passes": (lambda: wrap(SGD(0.01), backward_passes_per_step=3), {"accumulate": 3}, {}),
    "loss scale factor": (lambda: wrap(hvs.Signum(0.01, 0.5, loss_scale_factor=64.0)), {"rule": HALF}, {}),
    "loss scale": (
        lambda: wrap(Scaled(hvs.Signum(0.01, 0.5), initial_scale=1024.0, dynamic_growth_steps=1)),
        {"rule": HALF},
        {},
    ),
    "loss scale, accumulation": (
        lambda: wrap(Scaled(SGD(0.01, gradient_accumulation_steps=2), initial_scale=1024.0, dynamic_growth_steps=1)),
        {"accumulate": 2},
        {},
    ),
}


@pytest.mark.fault("accumulation")
@pytest.mark.fault("overflow")
@pytest.mark.parametrize("case", CASES)
def test_fit_equals_the_simulation_with(case):
    make, simulated, options = CASES[case]
    check(make(), tasks.Simulation(**simulated), **options)


def hierarchical(**options):
    return wrap(hvs.Signum(0.01, 0.5, **options), hierarchical=True, bucket_cap_mb=2e-5)  # a bucket for each variable


OF_NODES = {
    "in a graph": (lambda: hierarchical(), {}, {}),
    "eagerly": (lambda: hierarchical(), {}, {"run_eagerly": True}),
    "accumulation": (lambda: hierarchical(gradient_accumulation_steps=2), {"accumulate": 2}, {}),
    "loss scale": (lambda: wrap(Scaled(SGD(0.01), initial_scale=1024.0), hierarchical=True), {"rule": SIGNSGD}, {}),
}


@pytest.mark.ranks(3)  # nodes of two and of one
@pytest.mark.parametrize("case", OF_NODES)
def test_fit_of_nodes_equals_the_simulation(case, monkeypatch):
    nodes = (0, 0, 1)
    monkeypatch.setenv(OVERRIDE, f"node{nodes[RANK]}")
    make, simulated, options = OF_NODES[case]
    check(make(), tasks.Simulation(**{"rule": HALF, **simulated}, nodes=nodes), **options)


KINDS = {
    "Signum": lambda: wrap(hvs.Signum(1.0, 0.9)),
    "Adam": lambda: wrap(Adam(1.0), compression=hvs.Compression.signum(0.9)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_momenta_belong_to_variables_and_not_to_places_in_a_list(kind):
    variables = [keras.Variable(np.zeros(5, np.float32)) for _ in range(3)]
    optimizer, workers = KINDS[kind](), Workers([np.zeros(5)] * 3, SIZE, signum(0.9))
    optimizer.build(variables)
    for step in range(4):
        of_all = [list(np.random.default_rng([step, rank]).standard_normal((3, 5), np.float32)) for rank in range(SIZE)]
        order = [(0, 1, 2), (2, 0, 1)][step % 2]
        before = [v.numpy() for v in variables]
        optimizer.apply([tf.constant(of_all[RANK][i]) for i in order], [variables[i] for i in order])
        votes = workers.votes(of_all)
        for v, x, vote in zip(variables, before, votes, strict=True):
            if kind == "Signum":
                np.testing.assert_array_equal(v.numpy(), x - vote)
    for slot, m in zip(tasks.momenta(optimizer), workers.m[RANK], strict=True):
        np.testing.assert_array_equal(slot, m)


def test_without_the_reduction_the_check_fails():
    """The check of all these tests is one that an optimizer without votes does not pass."""
    with pytest.raises(AssertionError):
        check(hvs.Signum(0.01, 0.5), tasks.Simulation(HALF))
    MPI.COMM_WORLD.Barrier()


@pytest.mark.fault("clipping")
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


def apply_to(optimizer, variables, gradients):
    tf.function(lambda: optimizer.apply(gradients, variables))()


def stepper(optimizer, x):
    """A traced step on one gradient."""
    return tf.function(lambda g: optimizer.apply([g], [x]))


@pytest.mark.fault("nan")
@pytest.mark.ranks(3)  # two voters beside the broken one
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


@pytest.mark.fault("hostile")
@pytest.mark.ranks(3)  # one is hostile
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


@pytest.mark.fault("join")
@pytest.mark.ranks(3)  # two that go on and then one alone
def test_joined_ranks_abstain_with_counts():
    of_all = [oracle.gradients(rank, 100, np.float32) for rank in range(SIZE)]
    x = keras.Variable(np.zeros(100, np.float32))
    tasks.assert_joined_ranks_abstain(stepper(wrap(hvs.SignSGD(1.0), transport="counts"), x), x, of_all)


@pytest.mark.fault("sparse")
@pytest.mark.fault("unseen")
@pytest.mark.fault("unused")
def test_missing_and_sparse_gradients():
    """In a loop that executes eagerly; in a graph: tensorflow/test_tapes.py."""
    optimizer = wrap(hvs.SignSGD(1.0))
    table, unused, rare = keras.Variable(np.zeros((4, 2))), keras.Variable([3.0]), keras.Variable([0.0])
    sparse = tf.IndexedSlices(tf.ones((2, 2)), tf.constant([1, 1]), tf.constant([4, 2]))
    rare_gradient = tf.constant([-1.0]) if RANK == 0 else None
    optimizer.apply([sparse, None, rare_gradient], [table, unused, rare])
    np.testing.assert_array_equal(table.numpy(), [[0, 0], [-1, -1], [0, 0], [0, 0]])
    np.testing.assert_array_equal(unused.numpy(), [3.0])
    np.testing.assert_array_equal(rare.numpy(), [1.0])


POLICIES = {"mixed_bfloat16": "float32", "mixed_float16": "float32", "bfloat16": "bfloat16"}


@pytest.mark.fault("sixteen-bits")
@pytest.mark.parametrize("policy", POLICIES)
def test_mixed_precision(policy):
    """Each step is the simulation's, on the gradients that the model has: momenta in float32, weights rounded once."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(1)
    try:
        net = keras.Sequential(
            [keras.Input((4,)), keras.layers.Embedding(9, 3), keras.layers.Flatten(), keras.layers.Dense(2)]
        )
    finally:
        keras.config.set_dtype_policy(before)
    variables, random = net.trainable_variables, np.random.default_rng(RANK)
    assert {v.dtype for v in variables} == {POLICIES[policy]}
    optimizer = hvs.Signum(0.01, 0.5)
    scale = 4.0 if policy == "mixed_float16" else 1.0
    optimizer = wrap(Scaled(optimizer, initial_scale=scale) if scale > 1 else optimizer)
    optimizer.build(variables)
    workers = Workers([v.numpy() for v in variables], SIZE, HALF)
    for _ in range(3):
        x, y = tf.constant(random.integers(0, 9, (8, 4))), tf.constant(random.standard_normal((8, 2)), tf.float32)
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(tf.reduce_mean((tf.cast(net(x), tf.float32) - y) ** 2))
        gradients = tape.gradient(loss, [v.value for v in variables])
        mine = [tf.cast(tf.convert_to_tensor(g), tf.float32).numpy() / np.float32(scale) for g in gradients]
        votes = workers.votes(MPI.COMM_WORLD.allgather(mine))
        steps = [np.float32(0.01) * vote.astype(np.float32) for vote in votes]
        expected = [tf.cast(tf.cast(v, tf.float32) - step, v.dtype) for v, step in zip(variables, steps, strict=True)]
        optimizer.apply(gradients, variables)
        for v, value in zip(variables, expected, strict=True):
            np.testing.assert_array_equal(v.numpy(), value)
    for slot, m in zip(tasks.momenta(optimizer), workers.m[RANK], strict=True):
        assert slot.dtype == tf.float32
        np.testing.assert_array_equal(slot, m)


@pytest.mark.fault("scaler-outside")
def test_loss_scaling_around_a_distributed_optimizer_is_refused():
    """It would wait for ever where one rank overflows; Keras itself does it to models of policy mixed_float16."""
    with pytest.raises(ValueError, match=r"use hvs\.DistributedOptimizer\(LossScaleOptimizer"):
        Scaled(wrap(SGD(0.01)))


@pytest.mark.fault("differ")
@pytest.mark.parametrize("what", ["shape", "number", "order", "dtype", "options"])
def test_different_variables_are_an_error_on_all_ranks(what):
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
        "shape": r"variable 1 is v1 float32 \(5,\) on rank 0 and v1 float32 \(6,\)",
        "number": r"variable 2 is nothing more on rank 0 and v2 float32 \(7,\)",
        "order": r"variable 0 is v0 .* and v1 float32 \(5,\)",
        "dtype": r"v0 float64 \(3, 4\)",
        "options": "argument abstain is True on rank 0 and False",
    }
    with pytest.raises(ValueError, match=rf"all ranks must bring the same.*{brought[what]} on rank {SIZE - 1}:"):
        optimizer.apply([tf.ones(v.shape, v.dtype) for v in variables], variables)


@pytest.mark.fault("process-sets")
@pytest.mark.ranks(3)  # a set of two of them, and one of the other
def test_process_sets():
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
