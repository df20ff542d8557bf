"""Messages and records: what they look like, and what is refused."""

import numpy as np
import pytest

from horovod_sign.voting import messages
from horovod_sign.voting.messages import Planes
from horovod_sign.voting.records import disagreement, encode_record


def bits(*numbers):
    return np.array(numbers, np.uint8)


def test_chunks_are_whole_words_and_cover_the_plane():
    assert messages.chunk_bounds(40, 3) == [(0, 16), (16, 32), (32, 40)]
    assert messages.chunk_bounds(8, 3) == [(0, 8), (8, 8), (8, 8)]
    assert messages.chunk_bounds(0, 2) == [(0, 0), (0, 0)]


def test_a_message_says_how_many_planes_it_has():
    sign, nonzero = bits(1, 2, 3, 4), bits(0xFF, 0xFF, 0xFF, 0xFE)
    buffer, lengths = messages.split(Planes(sign, nonzero), [(0, 2), (2, 4)])
    assert buffer.tolist() == [1, 1, 2, 2, 3, 4, 0xFF, 0xFE] and lengths == [3, 5]
    buffer, lengths = messages.split(Planes(sign), [(0, 4)])
    assert buffer.tolist() == [1, 1, 2, 3, 4] and lengths == [5]


def test_messages_there_and_back():
    sign, nonzero = bits(1, 2, 3, 4), bits(0xFF, 0xFF, 0xFF, 0xFE)
    bounds = [(0, 2), (2, 2), (2, 4)]
    buffer, _ = messages.split(Planes(sign, nonzero), bounds)
    chunks = messages.parse(buffer, [2, 0, 2])
    assert [chunk.nonzero is None for chunk in chunks] == [True, True, False]
    joined = messages.join(chunks)
    assert joined.sign.tolist() == sign.tolist() and joined.nonzero.tolist() == nonzero.tolist()
    assert messages.join(chunks[:2]).nonzero is None


WRONG = {
    "a byte too many": lambda good: np.append(good, np.uint8(0)),
    "a message too many": lambda good: np.concatenate([good, good[:3]]),
    "a byte too few": lambda good: good[:-1],
    "nothing": lambda good: good[:0],
    "no planes": lambda good: np.concatenate([bits(0), good[1:]]),
    "three planes": lambda good: np.concatenate([bits(3), good[1:]]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_are_not_messages_of_this_vote_is_refused(wrong):
    good = bits(1, 10, 20, 2, 30, 40, 0xFF, 0xFE)
    assert len(messages.parse(good, [2, 2])) == 2
    with pytest.raises(RuntimeError, match="are not 2 messages of this vote"):
        messages.parse(WRONG[wrong](good), [2, 2])


@pytest.mark.parametrize("message", [bits(0), bits(3, *range(6))], ids=["no planes", "three planes"])
def test_messages_have_one_plane_or_two(message):
    """Also where the length would be right."""
    with pytest.raises(RuntimeError, match="are not 1 messages of this vote"):
        messages.parse(message, [2])


def test_fields_end_with_the_voter():
    words = messages.encode_fields(Planes(np.zeros(8, np.uint8)), 4)
    assert words[-1] == 1 and len(words) == 8 * 4 // 8 + 1
    # One of two ranks has joined and brings zeros: one voter, for plus everywhere.
    decided = messages.decode_fields(words, 4, abstain=True)
    assert decided.sign.tolist() == [0] * 8 and decided.nonzero is None


def test_records_agree_or_name_who_differs():
    records = [encode_record(text) for text in ("a", "b", "a", "a")]
    found = disagreement("the vote", np.stack(records))
    assert isinstance(found, ValueError) and "ranks 0, 2, 3: a; rank 1: b" in str(found)
    assert disagreement("the vote", np.stack([records[0]] * 3)) is None


def test_records_differ_beyond_what_they_show():
    """Texts longer than a record are told apart by the hash."""
    records = [encode_record("x" * 1000 + end) for end in "ab"]
    assert "differ" in str(disagreement("the vote", np.stack(records)))


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (TypeError("no"), TypeError, "rank 1 cannot vote: no"),
        (ValueError("no"), ValueError, "rank 1 cannot vote: no"),
        (KeyError("no"), ValueError, "rank 1 cannot vote: KeyError: 'no'"),
        (MemoryError(), ValueError, "rank 1 cannot vote: MemoryError"),
    ],
    ids=str,
)
def test_records_carry_errors(error, kind, text):
    records = [encode_record("a"), encode_record("", error)]
    found = disagreement("the vote", np.stack(records))
    assert type(found) is kind and str(found).endswith(text)
