"""Do all ranks mean the same? Asked before a vote starts, so that a mistake is an error on all ranks, not a hang.

What a rank brings is a list of items, each with a name and a value in words. While all is well the ranks exchange
`records` alone, 256 bytes; if items differ, all of them, to say which is the first, and who has what.
"""

import json
from collections.abc import Generator, Sequence

import numpy as np

from horovod_sign.voting.collectives import Allgather
from horovod_sign.voting.records import disagreement, encode_record, told

Item = tuple[str, str]
NOTHING = "nothing more"


def argument(name: str, value: object) -> Item:
    """What all ranks must give as an argument of that name."""
    return f"argument {name}", repr(value)


def agree(
    what: str,
    items: Sequence[Item],
    error: Exception | None,
    size: int,
    number: int = 0,
    must: str = "bring the same coordinates and options",
    remedy: str = "give and build it alike on all of them",
) -> Generator[Allgather, np.ndarray, int]:
    """A protocol, as those of votes: the largest `number` of any rank, if all bring the same items, and no error.

    Args:
        what: who asks, for errors.
        items: what this rank brings.
        error: why it cannot vote, if it cannot.
        size: how many ranks ask.
        number: something that they are to agree on.
        must, remedy: what all ranks must do, and how that is done, for the error.

    Raises:
        TypeError, ValueError: a rank has an error, or they differ. The same on all ranks.
    """
    text = json.dumps(list(items))
    record = np.concatenate([np.array([number], np.int64).view(np.uint8), encode_record(text, error)])
    records = (yield Allgather(record, alike=True)).reshape(size, -1)
    numbers, records = records[:, :8], records[:, 8:]
    found = disagreement(what, records)
    if found is None:
        return int(np.ascontiguousarray(numbers).view(np.int64).max())
    if (records[:, 0] == ord("-")).all():  # no rank has an error of its own: their items differ
        mine = np.frombuffer(bytearray(text.encode()), np.uint8)  # that can be written to, as torch wants it
        lengths = (yield Allgather(np.array([len(mine)], np.int64).view(np.uint8), alike=True)).view(np.int64)
        ends = np.cumsum(lengths)
        texts = np.split((yield Allgather(mine)), ends[:-1])
        of_all = [[tuple(item) for item in json.loads(bytes(each))] for each in texts]
        found = ValueError(f"{what}: all ranks must {must}, but {first_difference(of_all)}: {remedy}")
    raise found


def first_difference(of_all: list[list[Item]]) -> str:
    """In which item ranks differ first, and how: "argument abstain is True on ranks 0, 2 and False on rank 1"."""
    for i in range(max(map(len, of_all))):
        there = [items[i] if i < len(items) else None for items in of_all]
        if len(set(there)) > 1:
            name = next(item[0] for item in there if item is not None)
            return told(name, [_value(item, name) for item in there])
    raise AssertionError("nothing differs")


def _value(item: Item | None, name: str) -> str:
    if item is None:
        return NOTHING
    return item[1] if item[0] == name else f"not there, but {item[0]} is {item[1]}"
