"""What the scripts of this folder share: their flags, the table of measured beside expected, and the picture."""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from progress import Progress  # noqa: F401  (the scripts take it from here)
from recording import about, append

VOTES, FLOATS, THEORY = "#c2185b", "#767676", "#111111"


class Check(NamedTuple):
    """One line of the table.

    Attributes:
        what: the quantity.
        expected: what theory says, and by `tolerance` how near is near enough.
        measured: what came out.
        holds: whether it is so.
    """

    what: str
    expected: str
    measured: str
    tolerance: str
    holds: bool


def near(what: str, expected: float, measured: float, tolerance: float, why: str = "") -> Check:
    """A quantity that shall be as derived, give or take `tolerance`; `why` says where that is from."""
    said = f"+- {tolerance:.2g}{why and f' ({why})'}"
    return Check(what, _number(expected), _number(measured), said, bool(abs(measured - expected) <= tolerance))


def within(what: str, expected: float, measured: float, percent: float) -> Check:
    """A quantity that shall be as derived, give or take some per cent."""
    close = bool(abs(measured - expected) <= percent / 100 * abs(expected))
    return Check(what, _number(expected), _number(measured), f"{percent:g} %", close)


def at_most(what: str, bound: float, measured: float) -> Check:
    """A quantity below a bound."""
    return Check(what, f"<= {_number(bound)}", _number(measured), "bound", bool(measured <= bound))


def at_least(what: str, bound: float, measured: float) -> Check:
    """A quantity above a bound."""
    return Check(what, f">= {_number(bound)}", _number(measured), "bound", bool(measured >= bound))


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def arguments(doc: str | None, name: str, argv: list[str] | None):
    """The flags of a script; `name` is that of its picture."""
    parser = argparse.ArgumentParser(description=doc and doc.split("\n\n")[0])
    parser.add_argument("--fast", action="store_true", help="in seconds: fewer steps and cases, wider tolerances")
    parser.add_argument("--out", type=Path, default=Path(f"{name}.png"), help=f"the picture; default: {name}.png here")
    parser.add_argument("--seed", type=int, default=0, help="of all noise; default: 0")
    return parser.parse_args(argv)


def panels(count: int):
    """A figure with panels side by side. Matplotlib is imported here: of many ranks one draws."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["axes.titlesize"] = 10

    figure = Figure(figsize=(4.9 * count, 3.7), layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def shades(names) -> dict:
    """A colour for each name, from dark to light."""
    from matplotlib import colormaps

    names = list(names)
    return {name: colormaps["plasma"](0.85 * i / max(len(names) - 1, 1)) for i, name in enumerate(names)}


def finish(checks: list[Check], figure, out: Path) -> list[Check]:
    """Prints the table and the verdict, and writes the picture, and beside it the table as lines of JSON."""
    rows = [("", "expected", "measured", "tolerance", "")]
    rows += [(c.what, c.expected, c.measured, c.tolerance, "ok" if c.holds else "NOT SO") for c in checks]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        print("  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]))
    wrong = sum(not c.holds for c in checks)
    print(f"{len(checks) - wrong} of {len(checks)} as expected" + (f"; {wrong} NOT" if wrong else ""))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100)
    records, when = out.with_suffix(".jsonl"), about()
    records.unlink(missing_ok=True)
    for check in checks:
        append(records, {**check._asdict(), "holds": bool(check.holds), **when})
    print(f"The picture: {out.resolve()}, and {records.name}")
    return checks


def exit_status(checks: list[Check]) -> int:
    """1 if something did not come out."""
    return int(not all(c.holds for c in checks))
