"""Votes by the TensorFlow adapter on ranks: equal to NumPy's, bit for bit; Horovod's own tape; broadcasts."""

import horovod.tensorflow as hvd
import numpy as np
import oracle
import pytest
import tensorflow as tf
from ranks import RANK, SIZE, process_sets
from tensorflow.python.eager import context
from tf_rules import Wrong

import horovod_sign
import horovod_sign.tensorflow as hvs
from horovod_sign import rules
from horovod_sign.graphs import places, statistics
from horovod_sign.graphs.packing import Coordinates
from horovod_sign.tensorflow.election import Election
from horovod_sign.voting.choice import choose

RANKS = (2,)  # more where a test says so; other counts: core/test_properties.py

# Each dtype; each shape, in one dtype: a ballot is a small integer, whatever it was made from.
KINDS = [(dtype, (7, 11, 13)) for dtype in oracle.DTYPES] + [(np.dtype(np.float32), s) for s in [(), (0,), (3, 5), 64]]
VARIABLES = [Coordinates(np.empty(shape).shape, tf.as_dtype(dtype)) for dtype, shape in KINDS]
LABELS = [str(i) for i in range(len(VARIABLES))]


def gradients(rank, seed=0):
    """One array per variable, a third of them edge values; all dtypes at once, as they may be in one model."""
    return [
        oracle.gradients(rank, int(np.prod(shape)), dtype, seed + 100 * i).reshape(shape)
        for i, (dtype, shape) in enumerate(KINDS)
    ]


def assert_votes(votes, of_all, abstain=True):
    for i, (vote, v) in enumerate(zip(votes, VARIABLES, strict=True)):
        assert vote.dtype == v.dtype
        np.testing.assert_array_equal(tf.cast(vote, tf.int8), oracle.vote([ranks[i] for ranks in of_all], abstain))


@pytest.mark.fault("scalars")
@pytest.mark.quick
@pytest.mark.ranks(1, 2, 3)  # alone; even, where votes tie; odd
@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize("transport", ["exchange", "counts"])
def test_votes_equal_numpy_and_mpi(transport, abstain):
    election = Election(rules.signsgd(), abstain=abstain, transport=transport)

    def vote(tensors):
        return election.vote(tensors, VARIABLES, LABELS)

    in_graph = tf.function(vote)
    for seed, run in enumerate((in_graph, in_graph, vote)):
        of_all = [gradients(rank, seed) for rank in range(SIZE)]
        assert_votes(run([tf.constant(g) for g in of_all[RANK]]), of_all, abstain)
    mpi = [horovod_sign.majority_vote(g, abstain=abstain, transport=transport) for g in of_all[RANK]]
    assert_votes([tf.cast(vote, v.dtype) for vote, v in zip(mpi, VARIABLES, strict=True)], of_all, abstain)


@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize("transport", ["exchange", "counts"])
def test_only_bits_leave_a_gpu(transport, abstain, monkeypatch):
    """One copy a bucket to the host, one back, by the graph of a step: what is given no device there is on the GPU."""
    monkeypatch.setattr(places, "has_devices", lambda: True)
    made_on, variable = [], statistics.variable

    def noted(*args, **options):
        made_on.append(context.context().device_name or "anywhere")
        return variable(*args, **options)

    monkeypatch.setattr(statistics, "variable", noted)
    lengths, single = (7, 200), np.dtype(np.float32)
    variables = [Coordinates((n,), tf.float32) for n in lengths]
    of_all = [[oracle.gradients(rank, n, single, n) for n in lengths] for rank in range(SIZE)]
    election = Election(rules.signsgd(), abstain=abstain, transport=transport, bucket_bytes=100)
    traced = tf.function(lambda mine: election.vote(mine, variables, ["0", "1"]))
    mine = [tf.constant(g) for g in of_all[RANK]]
    for vote, *each in zip(traced(mine), *of_all, strict=True):
        np.testing.assert_array_equal(vote, oracle.vote(each, abstain))
    operations = traced.get_concrete_function(mine).graph.get_operations()
    # Reading counters, which are on the host, crosses nothing.
    assert {name.rpartition("/")[2] for name in made_on} == {"device:CPU:0"}
    numbers = [op for op in operations if op.type not in ("Const", "Placeholder", "NoOp", "ReadVariableOp")]
    out, back = set(), set()
    for op in numbers:
        if op.type.startswith("Horovod") or op.type in ("Assert", "If", "StatelessIf"):
            assert op.device, op.name
        # Of a branch's inputs each is where it was made, until the branch is taken.
        for tensor in op.inputs[:1] if op.type.endswith("If") else op.inputs:
            if tensor.op in numbers and bool(tensor.op.device) != bool(op.device):
                (out if op.device else back).add(tensor.name)
    assert len(out) == len(back) == len(variables), (out, back)


COUNTS, EXCHANGE = {"HorovodAllreduce"}, {"HorovodAlltoall", "HorovodAllgather"}


@pytest.mark.parametrize("abstain", [True, False])
def test_auto_takes_what_costs_less(abstain):
    """Up to the last coordinate that `choice` says; without variables that nobody has a gradient for."""
    less, more = 1000, 2_000_000
    while more - less > 1:
        middle = (less + more) // 2
        counts = choose(middle, SIZE, abstain, can_go_direct=False) == "counts"
        less, more = (middle, more) if counts else (less, middle)
    for n, ops in ((less, COUNTS), (more, EXCHANGE)):
        election, v = Election(rules.signsgd(), abstain=abstain), [Coordinates((n,), tf.float32)] * 2
        traced = tf.function(lambda g, election=election, v=v: election.vote([g, None], v, ["0", "1"])[0])
        graph = traced.get_concrete_function(tf.TensorSpec((n,))).graph
        assert {op.type for op in graph.get_operations() if op.type.startswith("Horovod")} == ops
    n = less if abstain else more  # where the other kind of vote goes the other way, or this would show less
    assert choose(n, SIZE, True, can_go_direct=False) != choose(n, SIZE, False, can_go_direct=False)


@pytest.mark.ranks(3)  # a set of two of them
def test_a_set_of_ranks_votes_by_its_own_numbers():
    """Ranks of a set are numbered from 0; what it votes on by itself leaves the votes of all in step."""
    with process_sets(hvd, [1, 2]) as (pair,):
        for transport in ("exchange", "counts") if RANK else ():
            of_set = [gradients(rank) for rank in (1, 2)]
            election = Election(rules.signsgd(), pair, transport=transport)
            assert (election.rank, election.size) == (RANK - 1, 2)
            assert_votes(election.vote([tf.constant(g) for g in of_set[RANK - 1]], VARIABLES, LABELS), of_set)
        of_all = [gradients(rank) for rank in range(SIZE)]
        election = Election(rules.signsgd())
        in_graph = tf.function(lambda mine: election.vote(mine, VARIABLES, LABELS))  # in eager mode ops have no names
        assert_votes(in_graph([tf.constant(g) for g in of_all[RANK]]), of_all)


@pytest.mark.fault("process-sets")
@pytest.mark.ranks(3)  # a set of two of them
def test_a_set_that_has_the_number_of_one_that_is_gone():
    """In which rank 1 alone has voted: the names of Horovod's ops do not hang on how often a rank did so before."""
    numbers = set()
    while True:  # until Horovod has given each of its free numbers
        with process_sets(hvd, [1]) as (alone,):
            number = alone.process_set_id
            if RANK == 1 and number not in numbers:
                mine = gradients(1)
                assert_votes(
                    Election(rules.signsgd(), alone).vote(list(map(tf.constant, mine)), VARIABLES, LABELS), [mine]
                )
        if number in numbers:
            break
        numbers.add(number)
    with process_sets(hvd, [1, 2]) as (pair,):
        assert pair.process_set_id in numbers
        if RANK:
            election, of_set = Election(rules.signsgd(), pair), [gradients(rank) for rank in (1, 2)]
            in_graph = tf.function(lambda mine: election.vote(mine, VARIABLES, LABELS))
            assert_votes(in_graph([tf.constant(g) for g in of_set[RANK - 1]]), of_set)


DIFFERENT = {
    "shape": ({}, (3, 5), "float32", r"variable 0 is it float32 \(3, 4\) on rank 0 and it float32 \(3, 5\) on rank 1:"),
    "dtype": ({}, (3, 4), "float64", r"and it float64 \(3, 4\) on rank 1:"),
    "abstain": ({"abstain": False}, (3, 4), "float32", "argument abstain is True on rank 0 and False on rank 1:"),
    "transport": (
        {"transport": "counts"},
        (3, 4),
        "float32",
        "argument transport is 'exchange' on rank 0 and 'counts' on rank 1:",
    ),
    "rule": (
        {"rule": rules.signum(0.5)},
        (3, 4),
        "float32",
        "the rule is .* on rank 0 and .*beta_state=0.5.* on rank 1:",
    ),
    "bucket": (
        {"bucket_bytes": 2500000},
        (3, 4),
        "float32",
        "argument bucket_cap_mb is None on rank 0 and 2.5 on rank 1:",
    ),
    "nodes": (
        {"hierarchical": True},
        (3, 4),
        "float32",
        "argument hierarchical is False on rank 0 and True on rank 1:",
    ),
    "wrong rule": ({"rule": Wrong()}, (3, 4), "float32", r"rank 1 cannot vote: .*but v is float32 of shape \(1, 4\)"),
    "no floats": ({}, (3, 4), "int32", "rank 1 cannot vote: the gradient of it is int32"),
}


@pytest.mark.fault("differ")
@pytest.mark.parametrize("what", DIFFERENT)
def test_what_one_rank_brings_differently_is_an_error_on_all(what):
    options, shape, dtype, words = DIFFERENT[what] if RANK == 1 else ({}, (3, 4), "float32", DIFFERENT[what][3])
    election = Election(**{"rule": rules.signsgd(), "transport": "exchange", **options})
    with pytest.raises(TypeError if what == "no floats" else ValueError, match=f"(?s){words}"):
        election.vote([tf.ones(shape, dtype)], [Coordinates(shape, tf.as_dtype(dtype))], ["it"])


def test_repeated_rows_of_a_sparse_gradient_are_summed():
    """Neither the first, the last, the largest nor most of them decides."""
    values = [[3.0, -3.0], [-1.0, 1.0], [-1.0, 1.0], [1.0, 1.0]]
    sparse = tf.IndexedSlices(tf.constant(values), tf.constant([1, 1, 1, 2]), tf.constant([4, 2]))
    dense = Election.dense(sparse, Coordinates((4, 2), tf.float32))
    np.testing.assert_array_equal(dense, [[0, 0], [1, -1], [1, 1], [0, 0]])


@pytest.mark.parametrize("abstain", [True, False])
def test_stock_tape_and_allreduce(abstain):
    compression = hvs.Compression.signsgd(abstain)
    w = tf.Variable(np.ones((4, 3), np.float32))
    data = [np.random.default_rng([5, rank]).standard_normal((3, 4, 3)).astype(np.float32) for rank in range(SIZE)]
    data[0][:, 0] = 0

    @tf.function
    def votes(g):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(w * g)
        return hvd.DistributedGradientTape(tape, compression=compression, op=hvd.Sum).gradient(loss, [w])[0]

    for step in range(3):
        expected = oracle.vote([of_rank[step] for of_rank in data], abstain)
        np.testing.assert_array_equal(votes(tf.constant(data[RANK][step])), expected)
    of_all = [gradients(rank) for rank in range(SIZE)]
    for i in range(len(oracle.DTYPES)):
        g = tf.constant(of_all[RANK][i])
        vote = hvd.allreduce(g, op=hvd.Sum, compression=compression, name=f"stock.{abstain}.{i}")
        np.testing.assert_array_equal(tf.cast(vote, tf.int8), oracle.vote([r[i] for r in of_all], abstain))


@pytest.mark.fault("average")
def test_average_is_refused_on_all_ranks():
    x, compression = tf.constant([1.0, -2.0, 3.0 * (-1) ** RANK]), hvs.Compression.signsgd()

    def reduce():
        return hvd.allreduce(x, op=hvd.Average, compression=compression, name="averaged")

    with pytest.raises(ValueError, match=r"use op=hvd\.Sum"):
        reduce()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"use op=hvd\.Sum"):
        tf.function(reduce)()


@pytest.mark.fault("join")
@pytest.mark.ranks(3)  # two that go on and then one alone
def test_stock_allreduce_with_ranks_that_have_joined():
    """The last rank's own words come back, as an average of equal ones would be: that is no error."""
    of_all = [oracle.gradients(rank, 100, np.float32) for rank in range(SIZE)]
    for step in range(1 + RANK):
        vote = hvd.allreduce(of_all[RANK], op=hvd.Sum, compression=hvs.Compression.signsgd(), name=f"joined.{step}")
        np.testing.assert_array_equal(vote, oracle.vote(of_all[step:]))
    hvd.join()


def test_what_horovod_s_own_wrappers_cannot_compress():
    with pytest.raises(ValueError, match=r"use hvs\.DistributedGradientTape"):
        hvs.Compression.signum().compress(tf.ones(3))
    with pytest.raises(TypeError, match="got a int32 tensor"):
        hvs.Compression.signsgd().compress(tf.ones(3, tf.int32))


def numbers(rank) -> list[np.ndarray]:
    """Arrays of many kinds and shapes, none of them like another rank's or another's."""
    random = np.random.default_rng([6, rank])
    kinds = [tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.int64, tf.int8, tf.bool]
    shapes = [(2, 3), (), (0, 2), (5,), (1, 4), (7,), (3, 3)]
    draw = [random.integers(0, 2 if kind == tf.bool else 100, shape) for kind, shape in zip(kinds, shapes, strict=True)]
    return [np.asarray(x, kind.as_numpy_dtype) for x, kind in zip(draw, kinds, strict=True)]


@pytest.mark.ranks(3)  # a set of two of them
def test_broadcast_variables():
    variables = [tf.Variable(x) for x in numbers(RANK)]
    with process_sets(hvd, [1, 2]) as (pair,):
        if RANK:
            hvs.broadcast_variables(variables, root_rank=2, process_set=pair)
    for v, x in zip(variables, numbers(2 if RANK else 0), strict=True):
        np.testing.assert_array_equal(v, x)
    hvs.broadcast_variables(variables)
    for v, x in zip(variables, numbers(0), strict=True):
        np.testing.assert_array_equal(v, x)


@pytest.mark.parametrize("what", ["shapes", "numbers"])
def test_broadcast_of_different_variables_is_an_error_on_all_ranks(what):
    shapes = [(2, 3 + (RANK == 1))] if what == "shapes" else [(2,)] * (1 + RANK)
    with pytest.raises(ValueError, match="all ranks must bring the same"):
        hvs.broadcast_variables([tf.Variable(tf.ones(shape)) for shape in shapes])
