"""Checkpoints of another optimizer: what both have is taken, what only one has is not, and the user is told."""

import warnings
from collections.abc import Callable, Container
from typing import Any


def load_own(
    optimizer: Any,
    load: Callable[[dict], None],
    state_dict: dict,
    known: Container[str] | None = None,
) -> bool:
    """Loads a state dict; of another class of optimizer, what there is in it for this one.

    torch takes options and state as they are, and then, or in the next step, a KeyError ends it.

    Args:
        optimizer: which loads it.
        load: its class's `load_state_dict`.
        state_dict: for it.
        known: the names of all state that it can have, where that is known.

    Returns:
        Whether the state was taken, too: the state dict is of an optimizer of this class.
    """
    own = [dict(group) for group in optimizer.param_groups]
    names = {name for state in state_dict["state"].values() for name in state}
    foreign = known is not None and any(name not in known for name in names)
    try:
        load({**state_dict, "state": {}} if foreign else state_dict)
    except KeyError:  # of torch's, which looks into the state for what is older than its versions
        foreign = True
        load({**state_dict, "state": {}})
    groups = optimizer.param_groups
    lacking = {key for before, group in zip(own, groups, strict=True) for key in before if key not in group}
    lacking &= set(optimizer.defaults)  # of all else, as of what schedulers note there, torch takes care
    if not lacking and not foreign:
        return True
    taken = {key: value for key, value in groups[0].items() if key in optimizer.defaults and key not in lacking}
    kept = {key: own[0][key] for key in own[0] if key in lacking}
    for before, group in zip(own, groups, strict=True):
        for key in [key for key in group if key not in before]:
            del group[key]
        for key in lacking:
            group.setdefault(key, before[key])
    optimizer.state.clear()
    warnings.warn(
        f"the state dict that was loaded is of another optimizer than {type(optimizer).__name__}: {_listed(taken)} are "
        f"taken from it{f', {_listed(kept)} stay as they were' if kept else ''}, and its state "
        f"({', '.join(sorted(names)) or 'none'}) is not taken, so that the optimizer starts with a new one",
        stacklevel=4,
    )
    return False


def _listed(options: dict) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())
