"""Are the replicas still the same? What should be equal on all ranks is compared, once in a while, by what differs.

All ranks take the same step, so replicas stay the same as long as they start from the same parameters and step with the
same numbers (learning rate, decay, ...). Nothing in a vote would show it if they did not.

`compare` is a protocol over sums, as `counts` is, so that ranks that have joined abstain from it too. While all is well
it is one allreduce of nine numbers. With h a piece of 16 bits of the hash of what a rank has, and V ranks,

    V * sum(h^2) == sum(h)^2    if and only if all h are equal    (Cauchy and Schwarz)

and only if they are not, two more tell which rank has what.
"""

import hashlib
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from horovod_sign.voting.collectives import Allreduce
from horovod_sign.voting.records import told

_PIECES = 4  # of 16 bits: the sums of their squares fit into int64 for up to 2**31 ranks
_TEXT = 64  # bytes of what a rank has that others are shown


class Item(NamedTuple):
    """Something that should be the same on all ranks.

    Attributes:
        kind: items of one kind are told about once, by the first that differs.
        name: what it is: "lr of group 0".
        value: what this rank has, in words.
    """

    kind: str
    name: str
    value: str


class Difference(NamedTuple):
    """The first item of its kind that is not the same on all ranks.

    Attributes:
        kind: its kind.
        text: "lr of group 0 is 0.1 on ranks 0, 2 and 0.2 on rank 1".
    """

    kind: str
    text: str


class Warnings:
    """Warns of what differs between ranks, of each kind once.

    Args:
        remedies: for each kind of item, what the user should do.
        hint: for the end of each warning.
    """

    def __init__(self, remedies: Mapping[str, str], hint: str = "") -> None:
        self._remedies, self._hint = remedies, hint and f"; {hint}"
        self._told: set[str] = set()

    def tell(self, differences: Iterable[Difference], where: str) -> None:
        """Ranks have differed, `where`: "at step 3"."""
        for kind, text in differences:
            if kind not in self._told:
                self._told.add(kind)
                told = f"ranks differ {where}: {text}; {self._remedies[kind]} (this is said once{self._hint})"
                warnings.warn(told, RuntimeWarning, stacklevel=4)


def numbers(group: dict, keys: Sequence[str], name: str) -> list[Item]:
    """The options of a group of parameters, as items of kind "numbers".

    Args:
        group: the options by name.
        keys: those that matter, in an order that is the same on all ranks.
        name: what to call the group.
    """
    return [Item("numbers", f"{key} of {name}", _in_words(group[key])) for key in keys if key in group]


def parts(sizes: Sequence[int], number: int, most: int) -> Iterator[tuple[int, int, int]]:
    """Which bytes of arrays to compare, if there are too many to compare all at once: another part each time.

    They are the bytes [number * most, (number + 1) * most) of all arrays in a row, round and round.

    Args:
        sizes: bytes of each array, the same on all ranks.
        number: how many times they were compared before.
        most: bytes of a part.

    Yields:
        (which array, first byte, last byte + 1) of each array that has a part in it.
    """
    total, at = sum(sizes), 0
    first = number * most % total if total > most else 0
    for i, size in enumerate(sizes):
        start, stop = max(first - at, 0), min(first + most - at, size)
        if start < stop:
            yield i, start, stop
        at += size


def compare(items: Sequence[Item], rank: int, size: int) -> Generator[Allreduce, np.ndarray, list[Difference]]:
    """Which items differ between ranks: the first of each kind; the same list on all ranks, empty if all is well.

    Args:
        items: in the same order on all ranks; that their number differs is a difference too.
        rank, size: this rank and how many compare.
    """
    items = [Item("layout", "the number of what is compared", str(len(items))), *items]
    hashes = np.array([_hash(repr(item)) for item in items], np.int64)
    whole = _pieces(_hash(hashes.tobytes()))
    if _all_equal((yield Allreduce(np.concatenate([[1], whole, whole**2])))):
        return []
    number = _pieces(len(items))
    sums = yield Allreduce(np.concatenate([[1], number, number**2]))
    if not _all_equal(sums):
        first = {"layout": items[0]}
    else:
        table = (yield _row(hashes, rank, size)).reshape(size, -1)
        there = table[:, 0] != 0  # no hash is 0; ranks that have joined brought zeros
        differ = (table[there] != table[there][0]).any(axis=0)
        first = {}
        for i in np.flatnonzero(differ):
            first.setdefault(items[i].kind, items[i])
    texts = b"".join(item.value.encode()[:_TEXT].ljust(_TEXT, b"\0") for item in first.values())
    shown = (yield _row(np.frombuffer(texts, np.int64), rank, size)).view(np.uint8).reshape(size, len(first), _TEXT)
    return [Difference(kind, _told(item.name, shown[:, i])) for i, (kind, item) in enumerate(first.items())]


def _in_words(value: object) -> str:
    """A number as all ranks write it, whether it is a Python number, an array, a tensor or a tuple of such."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_in_words, value))})"
    if hasattr(value, "tolist"):
        value = value.tolist()
    return repr(value)


def _hash(text: str | bytes) -> int:
    """48 bits, and never 0."""
    digest = hashlib.blake2b(text.encode() if isinstance(text, str) else text, digest_size=6).digest()
    return int.from_bytes(digest, "little") or 1


def _pieces(number: int) -> np.ndarray:
    return np.array([number >> 16 * i & 0xFFFF for i in range(_PIECES)], np.int64)


def _all_equal(sums: np.ndarray) -> bool:
    voters, total, squares = int(sums[0]), sums[1 : 1 + _PIECES].tolist(), sums[1 + _PIECES :].tolist()
    return all(voters * square == each**2 for each, square in zip(total, squares, strict=True))


def _row(mine: np.ndarray, rank: int, size: int) -> Allreduce:
    """What each rank brings, as a sum: a table of zeros but for this rank's row."""
    table = np.zeros((size, len(mine)), np.int64)
    table[rank] = mine
    return Allreduce(table.reshape(-1))


def _told(name: str, shown: np.ndarray) -> str:
    return told(name, [bytes(each).rstrip(b"\0").decode(errors="ignore") for each in shown])  # none: it has joined
