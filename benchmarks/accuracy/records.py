"""Lines of JSON, each with date, commit and machine; what is there already is not measured again."""

import json
from pathlib import Path

from recording import about as about  # of each line


def append(path: Path, line: dict):
    """Writes one line at once, so that an interrupted run leaves whole lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def read(path: Path) -> list[dict]:
    """The lines of a file; none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def find(lines: list[dict], **wanted) -> list[dict]:
    """Those that have these values."""
    return [line for line in lines if all(line.get(key) == value for key, value in wanted.items())]
