"""Do all ranks mean the same vote? Asked before a vote starts, so that a mistake is an error on all ranks, not a hang.

Each rank describes what it brings in a *record*: 256 bytes, a text and a hash of the whole text (which may be longer).
"""

import hashlib
from typing import Any

import numpy as np

_TEXT, _HASH = 240, 16
_SHOWN = 4  # values that a message shows
_KINDS: dict[str, Any] = {"-": None, "T": TypeError, "V": ValueError}


def encode_record(summary: str, error: Exception | None = None) -> np.ndarray:
    """The record of a rank that brings `summary`, or that cannot vote because of `error`.

    An error that is no TypeError becomes a ValueError, with its own type in the text if that says more.
    """
    kind = "-" if error is None else "T" if isinstance(error, TypeError) else "V"
    said = summary if error is None else str(error)
    if error is not None and not isinstance(error, TypeError | ValueError):
        said = f"{type(error).__name__}: {said}".removesuffix(": ")
    text = (kind + said).encode(errors="backslashreplace")
    short = text[:_TEXT].decode(errors="ignore").encode().ljust(_TEXT, b"\0")
    return np.frombuffer(short + hashlib.blake2b(text, digest_size=_HASH).digest(), np.uint8)


def disagreement(what: str, records: np.ndarray) -> Exception | None:
    """The error that all ranks should raise, given the (ranks, 256) records of all; None when they agree."""
    texts = [bytes(record[:_TEXT]).rstrip(b"\0").decode() for record in records]
    for rank, text in enumerate(texts):
        if _KINDS[text[0]] is not None:
            return _KINDS[text[0]](f"{what}: rank {rank} cannot vote: {text[1:]}")
    groups: dict[bytes, list[int]] = {}
    for rank, record in enumerate(records):
        groups.setdefault(bytes(record), []).append(rank)
    if len(groups) == 1:
        return None
    described = "; ".join(f"{ranks_in_words(ranks)}: {texts[ranks[0]][1:]}" for ranks in groups.values())
    return ValueError(f"{what}: all ranks must bring the same coordinates and options, but they differ ({described})")


def told(name: str, values: list[str]) -> str:
    """ "lr is 0.1 on ranks 0, 2 and 0.2 on rank 1". `values`: of each rank; one that is empty is not told."""
    ranks_of: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        if value:
            ranks_of.setdefault(value, []).append(rank)
    each = [f"{value} on {ranks_in_words(ranks)}" for value, ranks in list(ranks_of.items())[:_SHOWN]]
    if len(ranks_of) > _SHOWN:
        each.append(f"{len(ranks_of) - _SHOWN} others elsewhere")
    return f"{name} is {' and '.join(each)}"


def ranks_in_words(ranks: list[int]) -> str:
    """ "rank 3", or "ranks 0, 1, 2, 3 and 5 more"."""
    shown = ", ".join(map(str, ranks[:4])) + (f" and {len(ranks) - 4} more" if len(ranks) > 4 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"
