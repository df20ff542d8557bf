"""Keywords of Horovod that a vote cannot have; where they are as Horovod has them by default, they ask for nothing."""

_DEFAULTS = {"gradient_predivide_factor": 1.0, "num_groups": 0, "groups": None}


def check_keywords(wrapper: str, given: dict, without_effect: frozenset[str] = frozenset()):
    """Raises TypeError, in one sentence, for keywords that ask for what a vote cannot have.

    Args:
        wrapper: which was given them, for the message.
        given: those that it does not know.
        without_effect: names of those that mean nothing for a vote, whatever they are.
    """
    refused = [name for name, value in given.items() if name not in without_effect and not _is_default(name, value)]
    if refused:
        raise TypeError(
            f"hvs.{wrapper} has no {', '.join(refused)}: a vote is neither a sum nor an average and makes its own "
            "groups; leave them out"
        )


def _is_default(name: str, value) -> bool:
    return name in _DEFAULTS and (value is None if _DEFAULTS[name] is None else value == _DEFAULTS[name])
