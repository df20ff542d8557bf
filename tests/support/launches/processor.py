"""`--processor`: seconds of processor of each launch and of the dearest tests, on all their ranks together.

Unlike time on the wall, they say the same on a machine that others use too, more or less.
"""

import os
from collections import Counter

DEAREST = 30


def seconds() -> float:
    """Of this process so far, and of the children that it has waited for."""
    return sum(os.times()[:4])


def spent(test: float, start: float = 0.0) -> list[tuple]:
    """What a report carries: seconds of a test, and of the start of ranks before it."""
    return [("processor", test), ("start", start)]


class ProcessorPlugin:
    """Registered by conftest.py."""

    def __init__(self, group):
        """`group`: of a test, by its name, which launch it belongs to."""
        self._group, self._starts, self._tests, self._each = group, Counter(), Counter(), Counter()

    def pytest_runtest_logreport(self, report):
        told = dict(report.user_properties)
        if report.when == "teardown" and "processor" in told:
            group = self._group(report.nodeid)
            self._starts[group] += told["start"]
            self._tests[group] += told["processor"]
            self._each[report.nodeid] = told["processor"]

    def pytest_terminal_summary(self, terminalreporter):
        write = terminalreporter.write_line
        terminalreporter.section("seconds of processor: start of ranks, tests")
        for group, tests in self._tests.most_common():
            write(f"{self._starts[group]:8.1f} {tests:8.1f}  {group}")
        write(f"{self._starts.total():8.1f} {self._tests.total():8.1f}  together")
        for test, own in self._each.most_common(DEAREST):
            if own >= 0.1:
                write(f"{'':8} {own:8.1f}  {test}")
