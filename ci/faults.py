#!/usr/bin/env python3
"""Which test proves which row of docs/robustness.md: the cells with tests are written from marks on the tests.

    ci/faults.py            writes the cells
    ci/faults.py --check    says what is not as it would be written; exit status 1 if anything is

A row begins with its name, `<a id="hostile"></a>`. A test that proves it says `@pytest.mark.fault("hostile")`, a whole
file `pytestmark = pytest.mark.fault("hostile")`. Marks in tests/torch go to the third cell, in tests/keras and
tests/tensorflow to the fourth, in tests/core and tests/mpi behind the second; in tests/launch a second argument,
"torch" or "keras", says which, and without one it is both. A cell without tests says "not tested", or why it does not
apply. What stands behind " — " in a cell is written by hand, and stays.
"""

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "robustness.md"
ROW = re.compile(r'^\| <a id="([\w-]+)"></a> ?')
COLUMNS = {"torch": ("torch",), "keras": ("keras",), "tensorflow": ("keras",), "core": ("core",), "mpi": ("core",)}


def marks(node: ast.AST) -> list[tuple[str, ...]]:
    """The arguments of each `pytest.mark.fault(...)` in an expression."""
    return [
        tuple(argument.value for argument in call.args)
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.fault"
    ]


def proofs() -> dict[tuple[str, str], list[str]]:
    """For (row, column) the links to its tests."""
    found = defaultdict(list)
    for path in sorted((ROOT / "tests").glob("*/test_*.py")):
        folder, name = path.parent.name, path.name
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
                link, said = name, marks(node.value)
            elif isinstance(node, ast.FunctionDef):
                link, said = node.name, [each for decorator in node.decorator_list for each in marks(decorator)]
            else:
                continue
            for row, *column in said:
                for each in column or COLUMNS.get(folder, ("torch", "keras")):
                    found[row, each].append(f"[`{link}`](../tests/{folder}/{name})")
    return found


def cell(tests: list[str], before: str) -> str:
    """A cell of the third or fourth column, as it should be."""
    linked = before.startswith("[`test_")
    said = before.partition(" — ")[2] if linked else before
    if tests:
        if not linked and before.startswith("not tested"):
            said = before.removeprefix("not tested").lstrip(":; ")
        return ", ".join(tests) + (f" — {said}" if said else "")
    return "not tested" if linked or not before else before


def written(text: str) -> str:
    """The page as it should be."""
    found, lines = proofs(), []
    for line in text.splitlines():
        if row := ROW.match(line):
            name = row[1]
            _, situation, what, torch, keras, _ = (part.strip() for part in re.split(r"(?<!\\)\|", line))
            what = what.partition(" — [`test_")[0]
            if tests := found[name, "core"]:
                what += " — " + ", ".join(tests)
            cells = situation, what, cell(found[name, "torch"], torch), cell(found[name, "keras"], keras)
            line = "| " + " | ".join(cells) + " |"
        lines.append(line)
    return "\n".join(lines) + "\n"


def complaints(text: str) -> list[str]:
    """What is wrong with the page, or with marks."""
    rows = [row[1] for line in text.splitlines() if (row := ROW.match(line))]
    said = [f"two rows are named {name}" for name in sorted({name for name in rows if rows.count(name) > 1})]
    said += [
        f'tests say pytest.mark.fault("{name}"), and there is no such row'
        for name in sorted({row for row, _ in proofs()} - set(rows))
    ]
    tables = text.split("## Property tests")[0].splitlines()
    said += [
        f'a row without a name, <a id="..."></a>: {line[:80]}'
        for line in tables
        if line.startswith("| ") and not ROW.match(line) and not line.startswith("| situation")
    ]
    for line in tables:
        if (row := ROW.match(line)) and any(
            cell.startswith("[`test_") and "not tested" in cell for cell in map(str.strip, line.split("|"))
        ):
            said.append(f"row {row[1]} has tests in a cell that says 'not tested': make what is not a row of its own")
    for old, new in zip(text.splitlines(), written(text).splitlines(), strict=True):
        if old != new:
            said.append(f"row {ROW.match(old)[1]} is not what the marks say: run ci/faults.py")
    return said


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit("\n".join(complaints(PAGE.read_text())) or None)
    PAGE.write_text(written(PAGE.read_text()))
    sys.exit("\n".join(complaints(PAGE.read_text())) or None)
