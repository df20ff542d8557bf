"""Copies of wrapped optimizers: what they keep can be read and saved, but their votes are those of the ranks here."""

import copy
from typing import Any, NoReturn

_COPIED = (
    "this optimizer is a copy of one that hvs.DistributedOptimizer has wrapped, and votes with nobody: use that one, "
    "or wrap another and load the state_dict() of this"
)
_PICKLED = (
    "an optimizer that hvs.DistributedOptimizer has wrapped cannot be pickled, since its votes are those of the ranks "
    "that are here: save hvs.gather_state_dict(optimizer), or its state_dict(), and wrap another anew"
)


class NoVotes:
    """In place of the `Votes` of an optimizer that was copied."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(_COPIED)


def deepcopy(optimizer: Any, memo: dict) -> Any:
    """A deep copy of a wrapped optimizer."""
    cls: Any = type(optimizer)
    copied = memo[id(optimizer)] = cls.__new__(cls)
    copied.__setstate__(copy.deepcopy(optimizer.__getstate__(), memo))
    copied._become_distributed(optimizer._rule)
    copied._sign_states = copy.deepcopy(optimizer._sign_states, memo)
    copied._votes = NoVotes()
    return copied


def refuse_pickling() -> NoReturn:
    """Raises TypeError."""
    raise TypeError(_PICKLED)
