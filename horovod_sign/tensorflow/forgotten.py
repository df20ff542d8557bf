"""Compressions that were made anew in each step: their momenta are those of one gradient, and nobody has said so."""

import warnings
import weakref
from typing import Any, NamedTuple

_TIMES = 3
_FORGETS = (
    "compression=hvs.Compression.signum(), or another that keeps something between steps, was made anew in each of the "
    "last steps, and so keeps nothing: make it once, outside of the training step, and give it to each tape"
)


class _Voter(NamedTuple):
    """The latest compression that has voted on a variable, how often it has, and how many before it did so once."""

    compression: weakref.ref
    votes: list[int]
    forgotten: int


_voters: dict[int, _Voter] = {}


def note(compression: Any, variable: Any) -> None:
    """A compression that keeps something votes on a variable for the first time. Says it if such ones come and go."""
    latest = _voters.get(id(variable))
    if latest is None:
        weakref.finalize(variable, _voters.pop, id(variable), None)
    number = 0
    if latest is not None and latest.compression() is None and latest.votes == [1]:
        number = latest.forgotten + 1
    _voters[id(variable)] = _Voter(weakref.ref(compression), compression.votes, number)
    if number == _TIMES:
        warnings.warn(_FORGETS, RuntimeWarning, stacklevel=4)
