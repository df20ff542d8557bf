"""What a training was like, for tables and pictures: lines of JSON, one at each evaluation or for each training."""

import datetime
import json
import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Record:
    """Accuracy over seconds of training and over bytes sent, a line at each evaluation, whose time does not count.

    Args:
        path: the file, which is made anew; None: nothing is written (also on all ranks but one).
        every: steps from one evaluation to the next; 0: none but those asked for.
        usual: bytes that a step sends of which `step` is not told.
        about: what to write beside, in each line.
    """

    def __init__(self, path: str | None, every: int, usual: int, **about):
        self._path, self._every, self._about = path and Path(path), every, about
        self._usual = usual
        self.steps, self.bytes, self.seconds = 0, 0, 0.0
        self._since = time.perf_counter()
        if self._path:
            self._path.write_text("")

    def step(self, bytes_sent: int | None) -> bool:
        """A step has been taken. Returns whether an evaluation is due, the same on all ranks."""
        self.steps += 1
        self.bytes += self._usual if bytes_sent is None else bytes_sent
        return bool(self._every) and self.steps % self._every == 0

    @contextmanager
    def paused(self):
        """What is inside is not training."""
        self.seconds += time.perf_counter() - self._since
        try:
            yield
        finally:
            self._since = time.perf_counter()

    def evaluated(self, accuracy: float):
        """Writes a line. To be called inside `paused`."""
        line = {"step": self.steps, "seconds": self.seconds, "bytes": self.bytes, "accuracy": accuracy}
        if self._path:
            append(self._path, {**self._about, **line})


def append(path: Path, line: dict):
    """Writes one line at once, so that an interrupted run leaves whole lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def read(path: Path, missing_ok: bool = False) -> list[dict]:
    """The lines of a file; of one that may be missing, none."""
    if missing_ok and not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def find(lines: list[dict], **wanted) -> list[dict]:
    """Those that have these values."""
    return [line for line in lines if all(line.get(key) == value for key, value in wanted.items())]


def markdown(rows: list[list[str]]) -> str:
    """A table, whose first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def about() -> dict:
    """When, by which code and on which machine something was measured, and how busy that was."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit or "unknown",
        "machine": f"{os.cpu_count()} cores, {_processor()}",
        "load": round(os.getloadavg()[0], 1),
    }


def origin(lines: list[dict]) -> str:
    """When, by which code, on which machine and how busy that was, of some lines that have `about`."""
    dates = sorted(line["date"] for line in lines)
    said = [dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"]
    said.append("commit " + ", ".join(sorted({line["commit"] for line in lines})))
    said.append("; ".join(dict.fromkeys(line["machine"] for line in lines)))
    loads = [line["load"] for line in lines if "load" in line]
    if loads:
        said.append(f"load {min(loads):g}" + (f" to {max(loads):g}" if max(loads) > min(loads) else ""))
    return ", ".join(said)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
