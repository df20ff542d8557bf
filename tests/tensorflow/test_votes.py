"""Votes by the TensorFlow adapter under mpirun: equal to NumPy's, bit for bit; tapes of both kinds."""

import horovod.tensorflow as hvd
import numpy as np
import oracle
import pytest
import tensorflow as tf
from mpi4py import MPI
from ranks import RANK, SIZE

import horovod_sign
import horovod_sign.tensorflow as hvs
from horovod_sign import rules
from horovod_sign.tensorflow.election import Coordinates, Election

RANKS = (
    1,
    2,
    3,
)  # alone; even, where votes tie; odd; others: core/test_properties.py

SHAPES = [(), (0,), (3, 5), (64,), (7, 11, 13)]
VARIABLES = [Coordinates(shape, tf.as_dtype(dtype)) for dtype in oracle.DTYPES for shape in SHAPES]
LABELS = [str(i) for i in range(len(VARIABLES))]


def gradients(rank, seed=0):
    """One array per variable, a third of them edge values; all dtypes at once, as they may be in one model."""
    pairs = enumerate((dtype, shape) for dtype in oracle.DTYPES for shape in SHAPES)
    return [
        oracle.gradients(rank, int(np.prod(shape)), dtype, seed + 100 * i).reshape(shape) for i, (dtype, shape) in pairs
    ]


@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize("transport", ["exchange", "counts"])
def test_votes_equal_numpy_and_mpi(transport, abstain):
    election = Election(rules.signsgd(), abstain=abstain, transport=transport)

    def vote(tensors):
        return election.vote(tensors, VARIABLES, LABELS)

    for seed, run in enumerate((vote, tf.function(vote), tf.function(vote))):
        of_all = [gradients(rank, seed) for rank in range(SIZE)]
        votes = run([tf.constant(g) for g in of_all[RANK]])
        for i, (vote_, v) in enumerate(zip(votes, VARIABLES, strict=True)):
            expected = oracle.vote([ranks[i] for ranks in of_all], abstain)
            assert vote_.dtype == v.dtype
            np.testing.assert_array_equal(vote_.numpy().astype(np.int8), expected)
            mpi = horovod_sign.majority_vote(of_all[RANK][i], abstain=abstain, transport=transport)
            np.testing.assert_array_equal(mpi, expected)


@pytest.mark.parametrize("n, ops", [(1000, {"HorovodAllreduce"}), (2_000_000, {"HorovodAlltoall", "HorovodAllgather"})])
def test_auto_takes_counts_for_small_models(n, ops):
    election, v = Election(rules.signsgd()), Coordinates((n,), tf.float32)
    of_all = [oracle.gradients(rank, n, np.float32, 3) for rank in range(SIZE)]

    @tf.function
    def vote(g):
        return election.vote([g], [v], ["0"])[0]

    decided = vote(tf.constant(of_all[RANK]))
    np.testing.assert_array_equal(decided.numpy().astype(np.int8), oracle.vote(of_all, True))
    graph = vote.get_concrete_function(tf.TensorSpec(v.shape, v.dtype)).graph
    used = {op.type for op in graph.get_operations() if op.type.startswith("Horovod")}
    assert used == (ops if SIZE > 1 else set())


class Task:
    """Least squares with two variables and other data on each rank; all ranks can compute all ranks' gradients."""

    def __init__(self, seed=0):
        random = np.random.default_rng(seed)
        self.data = [random.standard_normal((16, 4)).astype(np.float32) for _ in range(SIZE)]
        self.variables = [tf.Variable(np.ones((4, 3), np.float32)), tf.Variable(np.zeros(3, np.float32))]

    def loss(self, x):
        w, b = self.variables
        return tf.reduce_mean((x @ w + b - tf.reduce_sum(x, 1, keepdims=True)) ** 2)

    def gradients_of_all(self, rows=16):
        return [self._gradients(x[:rows]) for x in self.data]

    def _gradients(self, x):
        with tf.GradientTape() as tape:
            loss = self.loss(x)
        return [g.numpy() for g in tape.gradient(loss, self.variables)]

    def stepper(self, wrap, in_graph):
        """A function that takes a step of 0.01 votes on this rank's first rows and returns the votes."""

        def step(x):
            with tf.GradientTape() as tape:
                loss = self.loss(x)
            votes = wrap(tape).gradient(loss, self.variables)
            for variable, vote in zip(self.variables, votes, strict=True):
                variable.assign_sub(0.01 * vote)
            return votes

        run = tf.function(step) if in_graph else step
        return lambda rows=16: [vote.numpy() for vote in run(tf.constant(self.data[RANK][:rows]))]


class Simulation:
    """The votes of all ranks' momenta, in NumPy."""

    def __init__(self, rule):
        self.rule, self.steps, self.m = rule, 0, None

    def votes(self, of_all):
        beta = np.float32(self.rule.beta_state or 0.0)
        rest = np.float32(1.0 - (self.rule.beta_state or 0.0))
        old = self.m or [[np.zeros_like(g) for g in gradients] for gradients in of_all]
        self.m = [[beta * m + rest * g for m, g in zip(*pair, strict=True)] for pair in zip(old, of_all, strict=True)]
        self.steps += 1
        voted = of_all if self.steps <= self.rule.warmup_steps else self.m
        return [oracle.vote(ballots) for ballots in zip(*voted, strict=True)]


def assert_equal_votes(votes, expected):
    for vote, other in zip(votes, expected, strict=True):
        np.testing.assert_array_equal(vote, other)


COMPRESSIONS = {
    "default": lambda: None,
    "signum": lambda: hvs.Compression.signum(0.9),
    "warmup": lambda: hvs.Compression.signum(0.5, warmup=True),
}


@pytest.mark.parametrize("in_graph", [True, False], ids=["graph", "eager"])
@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_tape_equals_the_simulation_also_when_traced_again(kind, in_graph):
    task, compression = Task(), COMPRESSIONS[kind]()
    simulation = Simulation(compression.rule if compression else rules.signsgd())
    step = task.stepper(lambda tape: hvs.DistributedGradientTape(tape, compression=compression), in_graph)
    for rows in (16, 16, 8, 16, 4):
        expected = simulation.votes(task.gradients_of_all(rows))
        assert_equal_votes(step(rows), expected)
    assert_replicas_identical(task.variables)


def assert_replicas_identical(variables):
    of_all = MPI.COMM_WORLD.allgather([v.numpy().tobytes() for v in variables])
    assert all(other == of_all[0] for other in of_all)


def test_two_models_with_one_compression_do_not_mix():
    tasks, compression = [Task(1), Task(2)], hvs.Compression.signum(0.9)
    simulations = [Simulation(compression.rule) for _ in tasks]
    steps = [
        task.stepper(lambda tape: hvs.DistributedGradientTape(tape, compression=compression), i == 0)
        for i, task in enumerate(tasks)
    ]
    for turn in (0, 1, 1, 0, 1, 0):
        expected = simulations[turn].votes(tasks[turn].gradients_of_all())
        assert_equal_votes(steps[turn](), expected)


def test_momenta_go_with_their_variables():
    compression = hvs.Compression.signum()
    Task().stepper(lambda tape: hvs.DistributedGradientTape(tape, compression=compression), False)()
    assert not compression.memories


@pytest.mark.parametrize("in_graph", [True, False], ids=["graph", "eager"])
def test_tape_votes_once_in_two_passes(in_graph):
    task, simulation = Task(), Simulation(rules.signum(0.5))
    compression = hvs.Compression.signum(0.5)
    step = task.stepper(
        lambda tape: hvs.DistributedGradientTape(tape, compression=compression, backward_passes_per_step=2), in_graph
    )
    for _ in range(3):
        first = task.gradients_of_all(8)
        assert not any(vote.any() for vote in step(8))
        second = task.gradients_of_all(16)
        mean = [[(a + b) / 2 for a, b in zip(*pair, strict=True)] for pair in zip(first, second, strict=True)]
        assert_equal_votes(step(16), simulation.votes(mean))


@pytest.mark.parametrize("in_graph", [True, False], ids=["graph", "eager"])
def test_structure_none_and_sparse(in_graph):
    """Nested sources keep their structure; a missing gradient abstains; an embedding's gradient is voted on dense."""
    table, unused, mine = tf.Variable(tf.ones((6, 2))), tf.Variable(1.0), tf.Variable([1.0, -1.0])

    def step():
        with tf.GradientTape() as tape:
            loss = -tf.reduce_sum(tf.gather(table, [1, 1, RANK + 2]))
            loss += tf.reduce_sum(mine) if RANK == 0 else 0.0
        return hvs.DistributedGradientTape(tape).gradient(loss, {"a": table, "b": [unused, mine]})

    votes = (tf.function(step) if in_graph else step)()
    expected = np.zeros((6, 2))
    expected[[1, *range(2, 2 + SIZE)]] = -1
    np.testing.assert_array_equal(votes["a"], expected)
    assert votes["b"][0] is None
    np.testing.assert_array_equal(votes["b"][1], [1, 1])


@pytest.mark.parametrize("abstain", [True, False])
def test_stock_tape_and_allreduce(abstain):
    if SIZE == 1:
        pytest.skip("Horovod's own tape does nothing on one rank")
    task, compression = Task(), hvs.Compression.signsgd(abstain)
    step = task.stepper(lambda tape: hvd.DistributedGradientTape(tape, compression=compression, op=hvd.Sum), True)
    for _ in range(3):
        expected = [oracle.vote(ballots, abstain) for ballots in zip(*task.gradients_of_all(), strict=True)]
        assert_equal_votes(step(), expected)
    of_all = [gradients(rank) for rank in range(SIZE)]
    for i, g in enumerate(of_all[RANK]):
        if g.ndim == 3:
            vote = hvd.allreduce(tf.constant(g), op=hvd.Sum, compression=compression, name=f"stock.{abstain}.{i}")
            np.testing.assert_array_equal(vote.numpy().astype(np.int8), oracle.vote([r[i] for r in of_all], abstain))


def test_average_is_refused_on_all_ranks():
    if SIZE == 1:
        pytest.skip("the average of one is the sum")
    x, compression = tf.constant([1.0, -2.0, 3.0 * (-1) ** RANK]), hvs.Compression.signsgd()

    def reduce():
        return hvd.allreduce(x, op=hvd.Average, compression=compression, name="averaged")

    with pytest.raises(ValueError, match=r"use op=hvd\.Sum"):
        reduce()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"use op=hvd\.Sum"):
        tf.function(reduce)()


def test_signum_needs_our_tape():
    with pytest.raises(ValueError, match=r"use hvs\.DistributedGradientTape"):
        hvs.Compression.signum().compress(tf.ones(3))


def test_different_variables_are_an_error_on_all_ranks():
    if SIZE == 1:
        pytest.skip("one rank agrees with itself")
    x = tf.Variable(tf.ones(3 + (RANK == 1)))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(x * x)
    with pytest.raises(ValueError, match="all ranks must bring the same coordinates"):
        hvs.DistributedGradientTape(tape, compression=hvs.Compression.signum()).gradient(loss, [x])


def test_broadcast_variables():
    kinds = [tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.int64, tf.int8, tf.bool]
    variables = [tf.Variable(tf.cast(tf.fill((2, 3), RANK % 2), kind)) for kind in kinds]
    root = SIZE - 1
    hvs.broadcast_variables(variables, root_rank=root)
    for v in variables:
        np.testing.assert_array_equal(tf.cast(v, tf.int32), np.full((2, 3), root % 2))
