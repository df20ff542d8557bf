#!/usr/bin/env python3
"""Which messages the package can print, and whether docs/troubleshooting.md has a row for each.

    ci/messages.py            lists them
    ci/messages.py --check    messages without a row, and rows without a message; exit status 1 if there are any

A message is what is raised or warned, and any other text of five words or more in the package that is neither a
docstring nor an option's help: so one that is put together elsewhere is found too. What only describes something, as in
a report, is listed below by hand. A row's first cell has the beginnings of messages, in backticks; … stands for what
differs from time to time.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"

TELL = ("warnings.warn", "print", "_stop")
REPORTS = ("advise/report.py", "advise/verdict.py", "advise/layout.py", "doctor/report.py")
EDITS = ("building/horovod_cmake.py",)  # its texts are mostly of another source: what it prints alone
DESCRIPTIONS = (  # parts of messages, records that ranks compare, and texts of the report
    "the number of parameter groups",
    "what is no longer there",
    "have the same parameters in the same order, and the same options",
    "bring the same coordinates and options",
    "build model and optimizer alike, and freeze, add or replace",
    "give and build it alike on all of them",
    "votes by … are those of NumPy, bit for bit",
    "… coordinates of a parameter of shape …",
    "Epoch …: finished gradual learning rate warmup",
    "measures the links between the ranks",
    "Assumed: links of … Gbit/s",
    "the number of what is compared",
)


def text_of(node: ast.AST) -> str | None:
    """The text of a string or f-string, with … for what is put in; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.replace("{}", "…")
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    return None


def told(tree: ast.AST, fewest: int) -> list[tuple[int, str]]:
    """(line, text) of each text in a file that is raised or warned, or has so many words."""
    apart, said = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # docstrings
            apart.add(id(node.value))
        if isinstance(node, ast.keyword) and node.arg in ("help", "description", "prog"):
            apart |= {id(each) for each in ast.walk(node.value)}
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if annotation is not None:
                apart |= {id(each) for each in ast.walk(annotation)}
        if isinstance(node, ast.JoinedStr):
            apart |= {id(each) for each in ast.walk(node) if each is not node}
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and ast.unparse(node.func) in TELL):
            said |= {id(each) for each in ast.walk(node)}
    return [
        (node.lineno, text)
        for node in ast.walk(tree)
        if (text := text_of(node)) and id(node) not in apart
        if " " in text.strip() and len(re.findall(r"[A-Za-z]{2,}", text)) >= (3 if id(node) in said else fewest)
    ]


def messages(fewest: int = 5) -> list[tuple[str, str]]:
    """(place, text) of each message of the package."""
    return [
        (f"{path.relative_to(ROOT)}:{line}", " ".join(text.split()))
        for path in sorted((ROOT / "horovod_sign").rglob("*.py"))
        if not path.as_posix().endswith(REPORTS)
        for line, text in sorted(
            told(ast.parse(path.read_text()), sys.maxsize if path.as_posix().endswith(EDITS) and fewest > 1 else fewest)
        )
    ]


def begins(text: str, beginning: str) -> bool:
    """Whether a message begins so."""
    pattern = ".*?".join(re.escape(piece) for piece in beginning.split("…"))
    return re.match(pattern, text) is not None


def complaints() -> list[str]:
    """What has no row, and what rows have no message."""
    rows = [line.split(" | ")[0] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    beginnings = [span for row in rows for span in re.findall(r"`([^`]+)`", row)]
    there = messages()
    said = [
        f"{place}: no row of docs/troubleshooting.md has: {text}"
        for place, text in there
        if not any(begins(text, each) for each in (*beginnings, *DESCRIPTIONS))
    ]
    texts = [text for _, text in messages(fewest=1)]
    return said + [
        f"docs/troubleshooting.md has a row for what the package does not say: {each}"
        for each in beginnings
        if not any(begins(text, each) for text in texts)
    ]


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit("\n".join(complaints()) or None)
    print(*(f"{place}: {text}" for place, text in messages()), sep="\n")
