"""The code blocks of README and docs, for tests that run them.

A ```python block runs, after those above it on its page, unless `<!-- not run: why -->` stands above it. A ```diff
block says what a script becomes: its lines without sign or with a plus run.
"""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "tests" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: \S.* -->\s*$")


class Block(NamedTuple):
    """A block of code, `line` the number of its first line."""

    page: Path
    line: int
    language: str
    text: str
    runs: bool

    @property
    def before(self) -> str:
        """What a diff changes."""
        return "".join(line[1:] for line in self.text.splitlines(keepends=True) if line[0] in " -")

    @property
    def after(self) -> str:
        """What a diff makes of it."""
        return "".join(line[1:] for line in self.text.splitlines(keepends=True) if line[0] in " +")

    def run(self, names: dict):
        """Runs it among these names, so that a failure shows the page and its line."""
        text = self.after if self.language == "diff" else self.text
        exec(compile("\n" * (self.line - 1) + text, self.page.relative_to(ROOT), "exec"), names)


def blocks(page: Path, language: str) -> list[Block]:
    """The blocks of a page in a language."""
    text = page.read_text()
    return [
        Block(page, text[: m.start()].count("\n") + 2, m[1], m[2], not _NOT_RUN.search(text[: m.start()]))
        for m in _FENCE.finditer(text)
        if m[1] == language
    ]


def run_page(name: str) -> dict:
    """Runs a page's Python, where it may write files; what it has defined in the end."""
    names = {"__name__": name}
    for block in blocks(ROOT / "docs" / name, "python"):
        if block.runs:
            block.run(names)
    return names


def diff_of(page: str, import_: str) -> Block:
    """The diff of a page whose result imports a module."""
    (block,) = (b for b in blocks(ROOT / page, "diff") if f"import {import_} as " in b.after)
    return block
