"""Figures in the documentation, written from what benchmarks have recorded: python -m benchmarks figures

    python -m benchmarks figures                           writes them
    python -m benchmarks figures --check                   says which are not as they would be written; exit status 1
    python -m benchmarks figures --record CHECK WHAT       adds to build/benchmarks what a check found
    python -m benchmarks figures --take build/benchmarks   takes records and pictures of benchmarks/run.sh, and writes
                                                           (so of examples/reproduce/all.sh, from build/results)

What is between <!-- figures: NAME --> and <!-- end of figures --> on a page is what the function of that name makes of
the records in docs/figures, which have date, commit and machine. If the first mark ends its line a table or paragraph
stands between them, and otherwise a part of a sentence.
"""

import argparse
import difflib
import json
import re
import shutil
import sys
import textwrap
from pathlib import Path

from recording import ROOT, about, append, read

from benchmarks import results, tables

DOCS = ROOT / "docs"
FIGURES = DOCS / "figures"
CHECKS = ROOT / "build" / "benchmarks" / "checks.jsonl"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
FUNCTIONS = tables.FIGURES | results.FIGURES
SETTINGS = {
    "checks.jsonl": ("check",),
    "results.jsonl": ("kind", "rate", "ranks", "coordinates", "pause_ms", "device"),
    "reproduced.jsonl": ("script",),
}
END = "<!-- end of figures -->"
MARKED = re.compile(rf"(?P<before>[^\n]*<!-- figures: (?P<name>[\w-]+) -->)(?P<text>.*?){END}", re.DOTALL)
WIDTH = 120


def written(text: str) -> str:
    """A page as it should be."""

    def replaced(match: re.Match) -> str:
        before, name = match["before"], match["name"]
        said = FUNCTIONS[name](Records(FIGURES))
        if match["text"].startswith("\n"):
            parts = [part if part.startswith("|") else textwrap.fill(part, WIDTH) for part in said.split("\n\n")]
            return "\n\n".join([before, *parts, END])
        if before.startswith("|"):  # in the row of a table
            return before + said + END
        indent = " " * (len(before) - len(before.lstrip(" -")))
        return textwrap.fill(before + said, WIDTH, subsequent_indent=indent) + END

    return MARKED.sub(replaced, text)


class Records:
    """What docs/figures has: lines of each file, by its name; none of a file that is not there."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __getitem__(self, name: str) -> list[dict]:
        return read(self._folder / name, missing_ok=True)


def complaints() -> list[str]:
    """What is not as it would be written, line by line."""
    said = []
    for page in PAGES:
        there = page.read_text()
        names = [str(page.relative_to(ROOT)), "python -m benchmarks figures"]
        said += difflib.unified_diff(there.splitlines(), written(there).splitlines(), *names, lineterm="", n=0)
    return said


def take(folder: Path):
    """Records and pictures of a run, in place of those that are here; others stay."""
    for name in ("results.jsonl", "small.jsonl", "kernels.jsonl", "advise.jsonl", "checks.jsonl", "scale.jsonl"):
        if (folder / name).exists() and read(folder / name):
            _write(name, read(folder / name))
    _take_reproduced(folder)
    for name in ("step-1gbit.png", "scale.png"):
        if (folder / name).exists():
            shutil.copyfile(folder / name, DOCS / name)


def _take_reproduced(folder: Path):
    """What examples/reproduce/all.sh left: a file of checks for each script, and a picture of the same name."""
    lines = []
    for path in sorted(folder.glob("*.jsonl")):
        script = path.stem.replace("-", "_")
        lines += [{"script": script, **line} for line in read(path) if "holds" in line]
        picture = path.with_suffix(".png")
        if picture.exists() and (DOCS / "results" / picture.name).exists():
            shutil.copyfile(picture, DOCS / "results" / picture.name)
    if lines:
        _write("reproduced.jsonl", lines)


def _write(name: str, lines: list[dict]):
    (FIGURES / name).write_text("".join(json.dumps(_rounded(line)) + "\n" for line in _with_others(name, lines)))


def record(check: str, found: str):
    """Keeps what a check found, for `take`."""
    append(CHECKS, {"check": check, "found": found, **about()})


def _with_others(name: str, lines: list[dict]) -> list[dict]:
    """Checks and settings that were not run again stay as they were."""
    if name not in SETTINGS:
        return lines
    there = {_setting(name, line) for line in lines}
    others = [line for line in read(FIGURES / name, missing_ok=True) if _setting(name, line) not in there]
    return sorted([*others, *lines], key=lambda line: str(line.get("check")))


def _setting(name: str, line: dict) -> tuple:
    return tuple(line.get(key) for key in SETTINGS[name])


def _rounded(value):
    """Floats by five digits."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__ and __doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--take", type=Path, metavar="FOLDER", help="that benchmarks/run.sh wrote")
    parser.add_argument("--record", nargs=2, metavar=("CHECK", "WHAT"), help="what a check found, for --take")
    args = parser.parse_args(arguments)
    if args.record:
        record(*args.record)
        return
    if args.take:
        take(args.take)
    for page in () if args.check else PAGES:
        page.write_text(written(page.read_text()))
    sys.exit("\n".join(complaints()) or None)
