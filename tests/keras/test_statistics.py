"""What a Keras optimizer says about its votes, under mpirun, against counts that NumPy makes from all gradients."""

import math
import warnings

import keras
import keras_tasks as tasks
import numpy as np
import oracle
import pytest
import tensorflow as tf
from mpi4py import MPI
from ranks import RANK, SIZE

import horovod_sign.tensorflow as tape_hvs
import horovod_sign.tensorflow.keras as hvs
from horovod_sign.statistics import PATIENCE, VoteStatistics
from horovod_sign.tensorflow import election

RANKS = (3,)  # more than two, where a rank can disagree; an odd number, where steps without ties weigh the same

LENGTHS = [1, 7, 64, 65, 1000, 3001]


def variables():
    return [keras.Variable(np.zeros(n, np.float32)) for n in LENGTHS]


def gradients(rank, edges=True):
    return [oracle.gradients(rank, n, np.float32, seed=i, edges=edges) for i, n in enumerate(LENGTHS)]


def step(optimizer, variables, gradients, in_graph=True):
    tensors = [None if g is None else tf.constant(g) for g in gradients]

    def apply():
        optimizer.apply(tensors, variables)

    (tf.function(apply) if in_graph else apply)()


def expected(of_all, abstain=True, silent=()):
    """The statistics of this rank after one vote, bytes left out."""
    for rank in range(SIZE):
        if rank in silent or not abstain:
            of_all[rank] = [np.nan_to_num(np.zeros_like(g) if rank in silent else g) for g in of_all[rank]]
    mine = np.concatenate(of_all[RANK])
    voters = [of_all[rank] for rank in range(SIZE) if abstain or rank not in silent] or of_all
    vote = np.concatenate([oracle.vote([of_rank[i] for of_rank in voters], abstain) for i in range(len(LENGTHS))])
    own = np.sign(np.nan_to_num(mine))
    if not abstain and RANK not in silent:
        own = np.where(own < 0, -1, 1)
    both, n, nans = (own != 0) & (vote != 0), sum(LENGTHS), int(np.isnan(mine).sum())
    agreement = (own == vote)[both].mean() if both.any() else math.nan
    shares = {"abstained": (own == 0).sum() / n, "ties": (vote == 0).sum() / n}
    means = {"agreement": agreement, "mean_agreement": agreement}
    return VoteStatistics(1, n, nans, nans, **shares, **means, bytes_float32=2 * (SIZE - 1) * 4 * n // SIZE)


def assert_equal(got, wanted):
    np.testing.assert_equal(got._asdict(), wanted._asdict())


@pytest.mark.ranks(1, 2, 3)  # even numbers tie
@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize("transport", ["exchange", "counts"])
def test_counts_are_those_of_numpy(transport, abstain):
    """Padding is not counted, in none of several buckets."""
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD(1.0), transport=transport, abstain=abstain)
    assert_equal(optimizer.vote_statistics(), VoteStatistics())
    step(optimizer, variables(), gradients(RANK), in_graph=transport == "counts")
    got = optimizer.vote_statistics()
    assert_equal(got._replace(bytes_sent=0), expected([gradients(rank) for rank in range(SIZE)], abstain))
    assert got.bytes_sent == optimizer.bytes_sent


def test_several_buckets(monkeypatch):
    monkeypatch.setattr(election, "BUCKET", 100)
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD(1.0))
    step(optimizer, variables(), gradients(RANK))
    got = optimizer.vote_statistics()
    assert_equal(got._replace(bytes_sent=0), expected([gradients(rank) for rank in range(SIZE)]))


@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize("silent", ["one rank", "all ranks"])
def test_a_rank_that_overflows_abstains_as_a_whole(silent, abstain):
    """Its padding abstains as well, and is still not counted."""
    silent = range(SIZE) if silent == "all ranks" else [0]
    scaled = keras.optimizers.LossScaleOptimizer(hvs.SignSGD(1.0), initial_scale=1.0)
    optimizer = hvs.DistributedOptimizer(scaled, abstain=abstain)
    mine = gradients(RANK, edges=False)
    if RANK in silent:
        mine[3][:] = np.nan
    step(optimizer, variables(), mine)
    wanted = expected([gradients(rank, edges=False) for rank in range(SIZE)], abstain, silent)
    got = optimizer.vote_statistics()._replace(bytes_sent=0)
    if SIZE > len(silent) == 1 and not abstain:
        wanted = wanted._replace(ties=got.ties, agreement=got.agreement, mean_agreement=got.mean_agreement)
    assert_equal(got, wanted)


def test_bytes_are_those_of_the_transports():
    """One bit in each phase of an exchange, and a byte a message; two bits, more for more ranks, in counts."""
    n, words = 64 * 60, 60
    x, g = [keras.Variable(np.zeros(n, np.float32))], [np.ones(n, np.float32)]
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD(1.0), transport="exchange")
    step(optimizer, x, g)
    share = 8 * -(-words // SIZE)
    mine = min(share, max(8 * words - RANK * share, 0))
    assert optimizer.bytes_sent == (8 * words - mine) + (SIZE - 1) + (SIZE - 1) * (mine + 1) if SIZE > 1 else True
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD(1.0), transport="counts")
    step(optimizer, x, g)
    bits = next(b for b in (2, 4, 8, 16) if 2**b > 2 * SIZE)
    assert optimizer.bytes_sent == 2 * (SIZE - 1) * 8 * (words * bits + 1) // SIZE


def test_accumulated_steps_are_one_vote():
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD(1.0), backward_passes_per_step=2)
    x, tensors = variables(), [tf.constant(g) for g in gradients(RANK, edges=False)]
    apply = tf.function(lambda: optimizer.apply(tensors, x))
    for number in range(5):
        apply()
        assert optimizer.vote_statistics().step == (number + 1) // 2


def test_metrics_of_epochs(tmp_path):
    """In the history and in files of callbacks that come after; means over ranks where asked for."""
    net, log = tasks.model(), tmp_path / "log.csv"
    callbacks = [
        hvs.callbacks.VoteStatisticsCallback(),
        hvs.callbacks.MetricAverageCallback(),
        keras.callbacks.CSVLogger(log),
    ]
    optimizer = hvs.DistributedOptimizer(hvs.Signum(0.01, 0.5))
    agreements = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: agreements.append(optimizer.vote_statistics().agreement)
    )
    history = tasks.fit(net, optimizer, [*callbacks, record]).history
    of_all = np.mean(MPI.COMM_WORLD.allgather(agreements), 0).reshape(tasks.EPOCHS, -1)
    np.testing.assert_allclose(history["vote_agreement"], of_all.mean(1))
    assert history["vote_nans"] == [0, 0] and history["vote_abstained"] == [0, 0]
    assert history["vote_ties"] == [0, 0]
    sent = MPI.COMM_WORLD.allreduce(optimizer.bytes_sent) / SIZE
    assert sent > 0 and history["vote_bytes_sent"] == [sent, sent]  # of a step, not of the epoch
    header = log.read_text().splitlines()[0].split(",")
    assert {"vote_agreement", "vote_abstained", "vote_ties", "vote_nans", "vote_bytes_sent"} < set(header)


@pytest.mark.fault("nan")
@pytest.mark.parametrize("kind", ["honest", "flipped", "nan"])
@pytest.mark.parametrize("how", ["optimizer", "tape"])
def test_what_is_wrong_with_a_rank_is_reported_there(how, kind):
    """Once, by the variable's name; honest ranks with noisy gradients are not."""
    wrong = kind != "honest" and RANK == SIZE - 1
    optimizer, compression = hvs.DistributedOptimizer(hvs.SignSGD(0.0)), tape_hvs.Compression.signsgd()
    x, y = (keras.Variable(np.zeros(n, np.float32), name=name) for name, n in (("x", 1), ("y", 500)))
    random = np.random.default_rng(RANK)

    @tf.function
    def vote(g):
        if how == "optimizer":
            optimizer.apply([tf.ones(1), g], [x, y])
            return
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(x + g * y)
        tape_hvs.DistributedGradientTape(tape, compression=compression).gradient(loss, [x, y])

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(PATIENCE + 20):
            g = (random.standard_normal(500) + 0.5).astype(np.float32)  # 69% of signs are right
            vote(tf.constant({"flipped": -g, "nan": np.where(g > 1, np.nan, g)}[kind] if wrong else g))
    texts = [str(each.message) for each in warned if each.category is RuntimeWarning]
    assert len(texts) == wrong, texts
    assert all(f"rank {RANK}" in text for text in texts)
    told = f"rank {RANK}: the gradient of parameter y" if kind == "nan" else "systematically disagrees"
    assert all(told in text for text in texts), texts


def test_tapes_tell_their_bytes_by_their_compression():
    compression = tape_hvs.Compression.signsgd()
    x = tf.Variable(tf.ones(64 * SIZE))
    assert compression.bytes_sent == 0
    for number in range(2):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(x * x)
        tape_hvs.DistributedGradientTape(tape, compression=compression, transport="exchange").gradient(loss, [x])
        assert compression.bytes_sent == (2 * (SIZE - 1) * 9 if SIZE > 1 else 0)
        assert compression.vote_statistics().step == number + 1
