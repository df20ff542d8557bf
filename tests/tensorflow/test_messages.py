"""The TensorFlow messages: the same bytes as NumPy's, whatever abstains, for any number of ranks.

But for the order of a variable's coordinates in its planes, which is `bits.to_planes`'s.
"""

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
pytest.importorskip("horovod.tensorflow")

from horovod_sign import algebra  # noqa: E402
from horovod_sign.graphs import messages as ours  # noqa: E402
from horovod_sign.graphs.ballots import packer  # noqa: E402
from horovod_sign.voting import messages as reference  # noqa: E402

COORDINATES = 64 * 5 - 3


def ballot(rank: int, abstain: bool):
    """A rank's gradient: even ranks abstain in the second half only, rank 1 nowhere."""
    x = np.random.default_rng(rank).standard_normal(COORDINATES).astype(np.float32)
    if rank != 1:
        x[COORDINATES // 2 :: 3] = [0.0, np.nan, -0.0][rank % 3]
    return ours.Planes(*packer(abstain)([tf.constant(x)])), reference.Planes(*_reference_pack(x, abstain)[:2])


def _reference_pack(x, abstain):
    padded = np.concatenate([x, np.ones(-len(x) % 64, x.dtype)])
    return algebra.pack_ballot(padded.reshape(8, -1).T.ravel(), abstain)


@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize("voters", [2, 3, 7, 8])
def test_exchange_sends_numpy_s_bytes(voters, abstain):
    pairs = [ballot(rank, abstain) for rank in range(voters)]
    bounds = reference.chunk_bounds(pairs[0][0].sign.shape[0], voters)
    widths = [b - a for a, b in bounds]
    sent = []
    for mine, theirs in pairs:
        buffer, lengths = ours.split(mine, bounds)
        expected, expected_lengths = reference.split(theirs, bounds)
        np.testing.assert_array_equal(buffer, expected)
        np.testing.assert_array_equal(lengths, expected_lengths)
        sent.append(np.split(expected, np.cumsum(expected_lengths)[:-1]))
    results = []
    for rank in range(voters):
        received = np.concatenate([messages[rank] for messages in sent])
        mine = ours.tally(ours.parse(tf.constant(received), [widths[rank]] * voters), abstain=abstain)
        theirs = reference.tally(reference.parse(received, [widths[rank]] * voters), abstain=abstain)
        result = ours.split(mine, [(0, widths[rank])])[0]
        np.testing.assert_array_equal(result, reference.split(theirs, [(0, widths[rank])])[0])
        results.append(result.numpy())
    decided = np.concatenate(results)
    mine, theirs = ours.join(ours.parse(tf.constant(decided), widths)), reference.join(reference.parse(decided, widths))
    np.testing.assert_array_equal(mine.sign, theirs.sign)
    np.testing.assert_array_equal(
        mine.nonzero, np.full_like(theirs.sign, 255) if theirs.nonzero is None else theirs.nonzero
    )


@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize(("voters", "bits"), [(1, 2), (3, 4), (9, 8), (130, 16)])
def test_counts_send_numpy_s_words(voters, bits, abstain):
    pairs = [ballot(rank % 6, abstain) for rank in range(voters)]
    for mine, theirs in pairs[:6]:
        np.testing.assert_array_equal(ours.encode_fields(mine, bits), reference.encode_fields(theirs, bits))
    words = sum(reference.encode_fields(theirs, bits) for _, theirs in pairs)
    mine = ours.decode_fields(tf.constant(words), bits, abstain=abstain)
    theirs = reference.decode_fields(words, bits, abstain=abstain)
    np.testing.assert_array_equal(mine.sign, theirs.sign)
    if theirs.nonzero is not None:
        np.testing.assert_array_equal(mine.nonzero, theirs.nonzero)
