"""How far it is, on rank 0: in a terminal tqdm's bar, with rate and time left; otherwise sober lines.

`mpirun` puts a pipe between a rank and the terminal, so where it reads from is looked at too.
"""

import os
import sys
import time

try:
    from tqdm import tqdm
except ImportError:  # no bar, but lines
    tqdm = None

SECONDS_BETWEEN_LINES = 20


class Progress:
    """Iterates over steps, or counts what `update` is told, and shows how far it is.

    Args:
        steps: what to iterate over; None: `update` is called.
        label: what is under way, in front.
        total: how many steps; default: as many as `steps` has.
        unit: what a step is called.
        shown: False on all ranks but one.
        lines: where there is no bar, print how far it is every 20 seconds, to stderr; False: only what `note` is told.
    """

    def __init__(self, steps=None, label="", total=None, unit="step", shown=True, lines=True):
        self._steps, self._label, self._unit = steps, label, unit
        self._total = len(steps) if total is None else total
        self._lines = shown and lines
        self._done, self._start = 0, time.monotonic()
        self._told = self._start
        width = terminal_width() if shown and tqdm else None
        self._bar = _bar(self._total, label, unit, width) if width else None

    @property
    def in_terminal(self) -> bool:
        """Whether there is a bar."""
        return self._bar is not None

    def __iter__(self):
        try:
            for step in self._steps:
                yield step
                self.update()
        finally:
            self.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def update(self):
        """One step more is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        elif self._lines and time.monotonic() - self._told > SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            passed = self._told - self._start
            left = passed / self._done * (self._total - self._done)
            what = f"{self._label}: {self._unit} {self._done} of {self._total}"
            print(f"{what}, {passed:.0f} s, {left:.0f} s left", file=sys.stderr, flush=True)

    def note(self, text: str):
        """Shows a result so far at the end of the bar; without a bar it is a line of its own."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
        else:
            width = len(str(self._total))
            print(f"{self._label}  {self._unit} {self._done:{width}d}/{self._total}  {text}", flush=True)

    def close(self):
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()
            time.sleep(0.05)  # mpirun forwards what is printed next by another pipe, which could be faster


def _bar(total, label, unit, width):
    tqdm.monitor_interval = 0  # no thread of its own in a process that is timed
    return tqdm(total=total, desc=label, unit=f" {unit}", leave=False, ncols=width - 1, nrows=24, miniters=1)


def terminal_width() -> int | None:
    """Columns of the terminal that stderr ends in, through mpirun if need be; None: it ends elsewhere."""
    processes = ["self", os.getppid()] if _has_launcher() else ["self"]
    return next(filter(None, (_columns(f"/proc/{process}/fd/2") for process in processes)), None)


def _columns(path: str) -> int | None:
    """Columns of a terminal; None: this is none, or not ours to open."""
    try:
        terminal = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return (os.get_terminal_size(terminal).columns or 80) if os.isatty(terminal) else None
    finally:
        os.close(terminal)


def _has_launcher() -> bool:
    """Whether the parent passes on what this process prints."""
    return any(name in os.environ for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "HOROVOD_RANK"))
