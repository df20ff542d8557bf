"""Ballots that carry a notice: "this rank must talk to all others". One bit beside a vote, in steps that need it alone.

A rank cannot begin a collective that the others do not expect. But every rank reads something of every other in each
vote, so a notice that goes with a ballot reaches all, and all then begin the collective. Without one the bytes are
those of `messages`:

    exchange    _NOTICE in the first byte of each message, of ballots, and then of the results of who has read it
    counts      _COUNTED times in the trailing field, which counts the voters
"""

import numpy as np

from horovod_sign.voting import messages
from horovod_sign.voting.messages import Planes

_NOTICE = 4
_COUNTED = 1 << 32


class Notices:
    """The functions of `messages` for one vote, with or without a notice.

    Args:
        given: whether this rank's ballot carries a notice.

    Attributes:
        found: whether any ballot of the vote did; once it is decided the same on all ranks.
    """

    tally = staticmethod(messages.tally)
    join = staticmethod(messages.join)

    def __init__(self, given: bool) -> None:
        self.found = given

    def split(self, ballot: Planes, bounds: list[tuple[int, int]]) -> tuple[np.ndarray, list[int]]:
        buffer, lengths = messages.split(ballot, bounds)
        if self.found:
            buffer[np.cumsum([0, *lengths[:-1]])] |= _NOTICE
        return buffer, lengths

    def parse(self, buffer: np.ndarray, chunk_lengths: list[int]) -> list[Planes]:
        try:
            return messages.parse(buffer, chunk_lengths)
        except RuntimeError:
            self._take_notices(buffer, chunk_lengths)
            return messages.parse(buffer, chunk_lengths)

    def encode_fields(self, ballot: Planes, bits: int) -> np.ndarray:
        words = messages.encode_fields(ballot, bits)
        words[-1] += _COUNTED * self.found
        return words

    def decode_fields(self, words: np.ndarray, bits: int, *, abstain: bool) -> Planes:
        self.found = bool(words[-1] >= _COUNTED)
        words[-1] %= _COUNTED
        return messages.decode_fields(words, bits, abstain=abstain)

    def _take_notices(self, buffer: np.ndarray, chunk_lengths: list[int]) -> None:
        at = 0
        for length in chunk_lengths:
            if at >= len(buffer):
                return
            self.found |= bool(buffer[at] & _NOTICE)
            buffer[at] &= ~np.uint8(_NOTICE)
            at += 1 + int(buffer[at]) * length
