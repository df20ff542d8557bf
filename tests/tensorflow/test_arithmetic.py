"""What a worker votes on, remembers and counts, in TensorFlow: bit for bit as by NumPy. One process, without ranks."""

import math

import numpy as np
import oracle
import pytest

tf = pytest.importorskip("tensorflow")
pytest.importorskip("horovod.tensorflow")

from horovod_sign import rules  # noqa: E402
from horovod_sign.graphs import ballots  # noqa: E402
from horovod_sign.graphs.packing import Coordinates  # noqa: E402
from horovod_sign.graphs.statistics import Counters, Counts  # noqa: E402
from horovod_sign.statistics import PATIENCE  # noqa: E402
from horovod_sign.tensorflow import election  # noqa: E402
from horovod_sign.tensorflow.memory import OwnStates, Sums  # noqa: E402

NOTHING = tf.constant(0, tf.uint32)
_INTEGER = {2: np.uint16, 4: np.uint32, 8: np.uint64}


FREE, HELD = (tf.constant(False), NOTHING), (tf.constant(True), NOTHING)


def interpolated(beta, m, g):
    """beta m + (1 - beta) g, each product and the sum rounded to float32."""
    return np.float32(beta) * m + np.float32(1 - beta) * g


RULES = {
    "signum": rules.signum(0.9),
    "another": rules.Interpolation(beta_vote=0.3, beta_state=0.99),  # votes on less history than it keeps
}


@pytest.mark.parametrize("kind", RULES)
def test_momenta_equal_numpy_s_bit_for_bit(kind):
    """No compiler may round a product and a sum at once, nor take one variable's momentum for another's."""
    rule, random = RULES[kind], np.random.default_rng(0)
    g, m = ([random.standard_normal(n).astype(np.float32) for n in (3000, 3000, 5)] for _ in range(2))
    g[1][:3] = [np.inf, -np.inf, np.nan]
    step = ballots.momentum_signs(rule)
    new, signs = step([tf.constant(x) for x in g], [tf.constant(x) for x in m], tf.constant(False), *FREE)
    for gradient, old, got, sign in zip(g, m, new, signs, strict=True):
        finite = np.isfinite(gradient)
        known = np.where(finite, gradient, 0)
        expected = np.where(finite, interpolated(rule.beta_state, old, known), old)
        np.testing.assert_array_equal(got, expected)
        view = np.where(finite, interpolated(rule.beta_vote, old, known), gradient)
        np.testing.assert_array_equal(sign, np.nan_to_num(np.sign(view)))
    new, signs = step([tf.constant(x) for x in g], [tf.constant(x) for x in m], tf.constant(True), *FREE)
    np.testing.assert_array_equal(signs[0], np.sign(g[0]))
    np.testing.assert_array_equal(new[0], interpolated(rule.beta_state, m[0], g[0]))
    new, _ = step([tf.constant(x) for x in g], [tf.constant(x) for x in m], tf.constant(False), *HELD)
    for got, old in zip(new, m, strict=True):
        np.testing.assert_array_equal(got, old)


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=str)
def test_numbers_beside_each_other_in_bits(dtype):
    """The least NaN abstains, the infinity below it votes; so does the least number, but not zero."""
    integer = _INTEGER[dtype.itemsize]
    infinity, top = int(np.array(np.inf, dtype).view(integer)), 1 << (8 * dtype.itemsize - 1)
    positive = [infinity + 1, infinity, infinity - 1, 1, 0]
    x = np.array([*positive, *(top | bits for bits in positive)], integer).view(dtype)
    (signs,) = ballots.signs([tf.constant(x)])
    assert signs.dtype == x.dtype
    np.testing.assert_array_equal(tf.cast(signs, tf.int8), [0, 1, 1, 1, 0, 0, -1, -1, -1, 0])
    for number, finite in zip(x, [False, False, True, True, True] * 2, strict=True):
        # Alone in the last of several tensors.
        tensors = [tf.zeros(3, x.dtype), tf.constant(np.array([1, number], dtype))]
        assert bool(ballots.all_finite(tensors)) == finite, number


def test_buckets_are_filled_in_order(monkeypatch):
    monkeypatch.setattr(election, "BUCKET", 10)
    variables = [Coordinates((n,), tf.float32) for n in (4, 6, 1, 0, 9, 25, 3, 5)]
    left_out = [False] * 7 + [True]
    assert election._buckets(variables, left_out) == [[0, 1], [2, 4], [5], [6]]
    of_bytes = [v._replace(dtype=tf.float16) if v.count == 25 else v for v in variables]
    assert election._buckets(of_bytes, left_out, 50) == [[0, 1, 2], [4], [5], [6]]  # 16, 24, 4; 36; 50; 12


def counts(**others):
    return tf.stack([tf.constant(others.get(field, 0), tf.int64) for field in Counts._fields])


def test_the_mean_agreement_follows_the_last_steps():
    """Of all steps until there are PATIENCE; then each step counts 1 / PATIENCE of it. Those without a vote do not."""
    counters, agreements = Counters(), [1.0] * 3 + [0.25] * (PATIENCE + 20)
    assert math.isnan(counters.agreement[1])
    mean = 0.0
    for number, agreement in enumerate(agreements, 1):
        counters.end_step(counts(coordinates=8, both=4, alike=int(4 * agreement)))
        counters.end_step(counts(coordinates=8, abstained=8, ties=8))
        mean += (agreement - mean) / min(number, PATIENCE)
        assert counters.agreement == (number, pytest.approx(mean, rel=1e-12))
    assert counters.statistics(3).mean_agreement == pytest.approx(mean, rel=1e-12)
    counters.forget_mean()
    assert counters.agreement[0] == 0 and math.isnan(counters.statistics(3).mean_agreement)


def test_statistics_since_some_step():
    counters = Counters()
    counters.end_step(counts(coordinates=8, abstained=2, ties=3, both=4, alike=4, nans=2, bytes_sent=10))
    before = counters.totals()
    for nans in (1, 0):
        counters.end_step(counts(coordinates=8, abstained=1, ties=2, both=6, alike=3, nans=nans, bytes_sent=7))
    latest, since = counters.statistics(2), counters.statistics(2, before)
    assert (latest.step, latest.coordinates, latest.nans, latest.total_nans, latest.bytes_sent) == (3, 8, 0, 3, 7)
    assert (since.step, since.coordinates, since.nans, since.total_nans, since.bytes_sent) == (3, 16, 1, 3, 14)
    for statistics in (latest, since):
        shares = statistics.abstained, statistics.ties, statistics.agreement
        assert shares == (1 / 8, 2 / 8, 3 / 6)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32, tf.float64], ids=lambda d: d.name)
def test_sums_of_passes(dtype):
    """As exact as float32 whatever the gradients are, float64 for those; a pass that overflowed adds nothing."""
    sums = Sums([Coordinates((2,), dtype), Coordinates((1,), dtype)])
    least = {tf.float64: 1e-12}.get(dtype, 1e-4)  # beside a 1 it is lost in a dtype with fewer bits
    speaking, silent = tf.constant(False), tf.constant(True)

    def add(x, abstaining, other=None):
        sums.add([tf.constant(x, dtype), None if other is None else tf.constant(other, dtype)], abstaining)

    add([1.0, 3.0], speaking)
    add([least, np.inf], silent)
    add([least, 2.0], speaking, [5.0])
    add([-1.0, 0.0], speaking)
    (means, other), nobody = sums.take(4)
    assert means[0] > 0 and means[1] == 1.25 and other[0] == 1.25 and not nobody
    add([np.nan, 1.0], silent)
    (means, other), nobody = sums.take(4)
    assert nobody and not np.any(means) and not np.any(other)


def test_momenta_of_variables_in_any_order():
    """A tape's and a wrapper's momentum: the warm-up ends after so many votes, and each variable keeps its own."""
    own = OwnStates(rules.signum(0.75, warmup=True), [(1,), (2,), (3,)])
    assert [bool(own.next([2, 0]).warm) for _ in range(3)] == [True, True, False]
    assert [slot.shape[0] for (slot,) in own.next([2, 0]).slots] == [3, 1] and int(own.votes) == 4
    assert all(slot.dtype == tf.float32 for (slot,) in own.slots)
