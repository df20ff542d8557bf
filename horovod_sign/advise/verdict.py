"""Which method to take, and when votes are not worth it."""

from typing import Any

from horovod_sign.advise.model import VOTES

_HOW = {
    "counts": 'transport="counts"',
    "exchange": "the default of hvd.DistributedOptimizer",
    "one bit": "abstain=False",
    "hierarchical": "hierarchical=True",
}
WORTH = 0.1  # of a step


def verdict(seconds: dict[str, Any], step: float | None) -> list[str]:
    """Sentences.

    Args:
        seconds: of each method at some number of ranks; None: not possible.
        step: of a step without communication, if it is known.
    """
    votes = {name: seconds[name] for name in VOTES if seconds.get(name) is not None}
    best = min(votes, key=votes.__getitem__)
    usual = min("float32", "float16", key=lambda name: seconds[name])
    saved = seconds[usual] - votes[best]
    if saved <= 0:
        return [
            f"Votes bring no speed here: the fastest, {best}, takes {_ms(votes[best])}, {usual} {_ms(seconds[usual])}."
        ]
    instead = f"{_ms(votes[best])} a step instead of {_ms(seconds[usual])} by {usual}"
    said = [f"The fastest vote is {best} ({_HOW[best]}): {instead}."]
    if step is None:
        most = _ms(saved / WORTH - seconds[usual])
        return [
            *said,
            f"That is {WORTH:.0%} of a step or more if the rest of it takes less than {most}; and nothing if backward",
            f"takes longer than {_ms(seconds[usual])}, so that all of that can hide behind it.",
        ]
    whole = step + seconds[usual]
    share = saved / whole
    hidden = max(step, seconds[usual]) / max(step, votes[best])
    said.append(
        f"A step of {_ms(step)} then takes {1 / (1 - share):.2f} times less time if nothing overlaps, and {hidden:.2f} "
        "times less if all does."
    )
    if share < WORTH:
        said.append(f"Votes are not worth it: they save {share:.0%} of a step at most.")
    return said


def _ms(seconds: float) -> str:
    return f"{1e3 * max(seconds, 0):,.3g} ms" if seconds < 1 else f"{1e3 * seconds:,.0f} ms"
