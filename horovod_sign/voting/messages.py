"""What travels: ballots cut into one chunk per rank, each chunk a message that says how many planes it carries.

A *plane* holds one bit a coordinate, least significant bit first, in whole 64-bit words. A ballot is a sign plane and,
only if it abstains somewhere, a nonzero plane. Rank r owns chunk r of the plane: it tallies that chunk for all.

    message = [1 byte: planes, 1 or 2] [sign bits of the chunk] [nonzero bits of the chunk, if planes == 2]

Second planes are sent chunk by chunk, only where needed. The length alone would not do: a receiver of an allgather
sees all the messages in one piece, and finds where each ends from its first byte.

Ballots may carry a *notice*: "this rank must talk to all others". A rank cannot begin a collective that the others do
not expect. But every rank reads something of every other in each vote, so a notice that goes with a ballot reaches all,
and all then begin the collective. It is one bit beside a vote, in steps that need it alone; else bytes are as above:

    exchange    _NOTICE in the first byte of each message, of ballots, and then of the results of who has read it
    counts      _COUNTED times in the trailing field, which counts the voters
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from horovod_sign import algebra

_NOTICE = 4
_COUNTED = 1 << 32


class Planes(NamedTuple):
    """A ballot, or a decided vote: bit planes of the same coordinates.

    Attributes:
        sign: uint8 array, 8 coordinates a byte, whole 64-bit words; a set bit is -1.
        nonzero: likewise, a clear bit is 0 (abstains, or a tie); None where no coordinate is 0.
    """

    sign: np.ndarray
    nonzero: np.ndarray | None = None


def chunk_bounds(nbytes: int, size: int) -> list[tuple[int, int]]:
    """The bytes [start, stop) of a plane of `nbytes` that each of `size` ranks owns: whole words, as even as may be."""
    words = -(-nbytes // 8)
    share = 8 * -(-words // size)
    return [(min(r * share, nbytes), min((r + 1) * share, nbytes)) for r in range(size)]


def _new(size: int) -> np.ndarray:
    return np.empty(size, np.uint8)


def split(
    ballot: Planes, bounds: list[tuple[int, int]], make: Callable[[int], np.ndarray] = _new
) -> tuple[np.ndarray, list[int]]:
    """The messages of a ballot, one per chunk, in one buffer, which `make` gives; and the length of each."""
    second = [ballot.nonzero is not None and not algebra.all_ones(ballot.nonzero[a:b]) for a, b in bounds]
    lengths = [1 + (b - a) * (1 + two) for (a, b), two in zip(bounds, second, strict=True)]
    buffer = make(sum(lengths))
    at = 0
    for (a, b), two in zip(bounds, second, strict=True):
        buffer[at] = 1 + two
        buffer[at + 1 : at + 1 + b - a] = ballot.sign[a:b]
        if two:
            buffer[at + 1 + b - a : at + 1 + 2 * (b - a)] = ballot.nonzero[a:b]  # type: ignore[index]
        at += 1 + (b - a) * (1 + two)
    return buffer, lengths


def parse(buffer: np.ndarray, chunk_lengths: list[int]) -> list[Planes]:
    """The chunks in a buffer of messages, given the bytes that each chunk's sign plane has. No copies are made."""
    chunks, at = [], 0
    for length in chunk_lengths:
        planes = int(buffer[at]) if at < len(buffer) else 0
        end = at + 1 + planes * length
        if planes not in (1, 2) or end > len(buffer):
            break
        middle = at + 1 + length
        chunks.append(Planes(buffer[at + 1 : middle], buffer[middle:end] if planes == 2 else None))
        at = end
    if len(chunks) != len(chunk_lengths) or at != len(buffer):
        raise RuntimeError(
            f"the vote received {len(buffer)} bytes that are not {len(chunk_lengths)} messages of this vote: the ranks "
            "do not vote on the same coordinates, or do not all run the same version of horovod_sign"
        )
    return chunks


def join(chunks: list[Planes], make: Callable[[int], np.ndarray] = _new) -> Planes:
    """The whole planes of chunks in rank order, in one buffer, which `make` gives."""
    two, length = any(chunk.nonzero is not None for chunk in chunks), sum(len(chunk.sign) for chunk in chunks)
    planes = make((1 + two) * length)
    sign = np.concatenate([chunk.sign for chunk in chunks], out=planes[:length])
    if not two:
        return Planes(sign)
    nonzero, at = planes[length:], 0
    for chunk in chunks:
        end = at + len(chunk.sign)
        nonzero[at:end] = 0xFF if chunk.nonzero is None else chunk.nonzero
        at = end
    return Planes(sign, nonzero)


def tally(ballots: list[Planes], *, abstain: bool) -> Planes:
    """The vote on one chunk by all its ballots; without `abstain` ties are +1, and there is no second plane."""
    return Planes(*algebra.tally([b.sign for b in ballots], [b.nonzero for b in ballots], not abstain))


def encode_fields(ballot: Planes, bits: int) -> np.ndarray:
    """The int64 words of a ballot's fields; the last word is the trailing field, 1: this rank votes."""
    words = np.zeros(len(ballot.sign) * bits // 8 + 1, np.int64)
    algebra.encode_counts(bits, ballot.sign, ballot.nonzero, 8 * len(ballot.sign), words[:-1].view(np.uint8))
    words[-1] = 1
    return words


def decode_fields(words: np.ndarray, bits: int, *, abstain: bool) -> Planes:
    """The decision in summed words; the last word is V, the number of voters."""
    n = 64 * (len(words) - 1) // bits
    return Planes(*algebra.decode_counts(bits, words[:-1].view(np.uint8), int(words[-1]), n, not abstain))


class Memory:
    """What the votes of one bucket write into, one after the other: new memory costs more than what is copied there."""

    def __init__(self) -> None:
        self._sent = self._decided = _new(0)

    def lend(self, size: int) -> np.ndarray:
        """For messages. Until it is given back, which that of a failed vote never is, others get other memory."""
        memory, self._sent = self._sent, _new(0)
        return memory[:size] if len(memory) >= size else _new(size)

    def give_back(self, lent: np.ndarray) -> None:
        """Nobody reads the messages in it any more."""
        self._sent = lent if lent.base is None else lent.base

    def decided(self, size: int) -> np.ndarray:
        """For decided planes, which the next vote overwrites."""
        if len(self._decided) < size:
            self._decided = _new(size)
        return self._decided[:size]


class Notices:
    """The functions above for one vote, with or without a notice.

    Args:
        given: whether this rank's ballot carries a notice.
        memory: of the bucket that is voted on.

    Attributes:
        found: whether any ballot of the vote did; once it is decided the same on all ranks.
    """

    tally = staticmethod(tally)

    def __init__(self, given: bool, memory: Memory | None = None) -> None:
        self.found, self._memory = given, memory or Memory()
        self._sent = _new(0)

    def split(self, ballot: Planes, bounds: list[tuple[int, int]]) -> tuple[np.ndarray, list[int]]:
        self._sent, lengths = buffer, _ = split(ballot, bounds, self._memory.lend)
        if self.found:
            buffer[np.cumsum([0, *lengths[:-1]])] |= _NOTICE
        return buffer, lengths

    def parse(self, buffer: np.ndarray, chunk_lengths: list[int]) -> list[Planes]:
        self._memory.give_back(self._sent)
        try:
            return parse(buffer, chunk_lengths)
        except RuntimeError:
            self._take_notices(buffer, chunk_lengths)
            return parse(buffer, chunk_lengths)

    def join(self, chunks: list[Planes]) -> Planes:
        return join(chunks, self._memory.decided)

    def encode_fields(self, ballot: Planes, bits: int) -> np.ndarray:
        words = encode_fields(ballot, bits)
        words[-1] += _COUNTED * self.found
        return words

    def decode_fields(self, words: np.ndarray, bits: int, *, abstain: bool) -> Planes:
        self.found = bool(words[-1] >= _COUNTED)
        words[-1] %= _COUNTED
        return decode_fields(words, bits, abstain=abstain)

    def _take_notices(self, buffer: np.ndarray, chunk_lengths: list[int]) -> None:
        at = 0
        for length in chunk_lengths:
            if at >= len(buffer):
                return
            self.found |= bool(buffer[at] & _NOTICE)
            buffer[at] &= ~np.uint8(_NOTICE)
            at += 1 + int(buffer[at]) * length
