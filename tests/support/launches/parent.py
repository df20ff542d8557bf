"""The half of the plugin that the user's pytest has: one item for each rank count, carried out on ranks."""

from collections import Counter
from pathlib import Path

import pytest

from launches.garbage import collect_what_comes
from launches.launch import Key, Launch
from launches.processor import seconds, spent

LIMIT = 60  # seconds for one test, unless it is marked with another limit
FRAMEWORKS = {"torch": "torch", "tensorflow": "tensorflow", "keras": "tensorflow"}
TESTS = Path(__file__).resolve().parents[2]


def parametrize_ranks(metafunc, only: list[int]):
    """Makes one item of a test for each of its rank counts.

    Args:
        only: these counts if not empty: of those that the test is marked with, else in place of those of its file.
    """
    mark = metafunc.definition.get_closest_marker("ranks")
    of_file = getattr(metafunc.module, "RANKS", None)
    if mark is None and of_file is None:
        return
    counts = [n for n in mark.args if not only or n in only] if mark else only or of_file
    metafunc.fixturenames.append("ranks")
    metafunc.parametrize("ranks", counts, ids=[f"{n}ranks" for n in counts])


def key_of(item) -> Key | None:
    """The launch that an item belongs to; None: it runs in this process."""
    callspec = getattr(item, "callspec", None)
    if callspec is None or "ranks" not in callspec.params:
        return None
    if item.get_closest_marker("ranks") is None and getattr(item.module, "RANKS", None) is None:
        return None  # a parameter of the test's own
    if not isinstance(callspec.params["ranks"], int):
        return None  # no count is left by --ranks: pytest skips it
    ranks, path = callspec.params["ranks"], item.path
    if getattr(item.module, "OWN_LAUNCH", False):
        return Key("none", ranks, str(path))
    return Key(FRAMEWORKS.get(path.relative_to(TESTS).parts[0], "mpi"), ranks)


class ParentPlugin:
    """Registered by conftest.py where pytest was started by the user (or by pytest-xdist), not by a launch."""

    def __init__(self, only: list[int], mpirun: list[str]):
        self._mpirun = mpirun or [str(TESTS.parent / "ci" / "run")]
        self._only, self._launch, self._failed_starts = only, None, {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_generate_tests(self, metafunc):
        parametrize_ranks(metafunc, self._only)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        """Tests of one launch beside each other; what is mostly asleep first, then launches that take longest."""
        keys = {id(item): key_of(item) for item in items}
        launched = [item for item in items if keys[id(item)]]
        weights = Counter(keys[id(item)][:2] for item in launched)
        launched.sort(key=lambda item: _order(keys[id(item)], weights))
        others = [item for item in items if not keys[id(item)]]
        # Programs that wait for each other before what is short, so that no process is left with them in the end.
        folder = {id(item): item.path.relative_to(TESTS).parts[0] for item in others}
        others.sort(key=lambda item: (item.get_closest_marker("asleep") is None, folder[id(item)] != "launch"))
        asleep = sum(item.get_closest_marker("asleep") is not None for item in others)
        items[:] = others[:asleep] + launched + others[asleep:]

    def pytest_collection_finish(self):
        collect_what_comes()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item, nextitem):
        key = key_of(item)
        if key is None:
            self._close()
            self._before = seconds()
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(item, key, nextitem):
            report.user_properties = self._spent
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        if nextitem is None or key_of(nextitem) != key:
            self._close()
        return True

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item, call):
        outcome = yield
        if call.when == "teardown":
            outcome.get_result().user_properties = spent(seconds() - self._before)

    def pytest_unconfigure(self):
        self._close()

    def _reports(self, item, key, nextitem) -> list[pytest.TestReport]:
        mark = item.get_closest_marker("limit")
        following = nextitem.nodeid if nextitem is not None and key_of(nextitem) == key else None
        limit = mark.args[0] if mark else LIMIT
        before = self._launch
        launch = self._launch_for(key, item)
        begun = 0.0 if launch is before else launch.processor
        answer = launch.run(item.nodeid, following, limit)
        self._spent = spent(answer.processor, begun)
        return list(combine(item, key, answer))

    def _launch_for(self, key, item) -> Launch:
        launch = self._launch
        if launch is not None and launch.key == key and launch.alive:
            return launch
        if self._failed_starts.get(key, 0) > 1:
            return launch  # which says again why it did not start
        self._close()
        files = dict.fromkeys(str(each.path) for each in item.session.items if key_of(each) == key)
        capture = ["-s"] if item.config.getoption("capture") == "no" else []
        self._launch = Launch(key, list(files), ["-q", *capture], self._mpirun)
        self._failed_starts[key] = 0 if self._launch.alive else self._failed_starts.get(key, 0) + 1
        return self._launch

    def _close(self):
        if self._launch is not None:
            self._launch.close()
            self._launch = None


def _order(key: Key, weights: Counter):
    framework, ranks = key[:2]
    weight = weights[framework, ranks] * ranks * (3 if framework == "tensorflow" else 1)
    return (-weight, *key)


def combine(item, key: Key, answer):
    """pytest's reports of an item from those of all ranks: it passes if it passes everywhere."""
    of_ranks = [[_restore(item.config, data) for data in reports] for reports in answer.reports]
    if answer.trouble:
        yield _failure(item, key, of_ranks, answer)
        return
    for phase in zip(*of_ranks, strict=False):
        outcomes = {report.outcome for report in phase}
        if len(outcomes) == 1 and "failed" not in outcomes:
            first = phase[0]
            first.duration = max(report.duration for report in phase)
            yield first
        else:
            yield _failure(item, key, [[report] for report in phase], answer, phase[0].when)
            return


def _restore(config, data: dict) -> pytest.TestReport:
    report = config.hook.pytest_report_from_serializable(config=config, data=data)
    if isinstance(report.longrepr, list):  # of a skip; JSON has no tuples
        report.longrepr = tuple(report.longrepr)
    return report


def _failure(item, key, of_ranks, answer, when="call") -> pytest.TestReport:
    """One report of all that went wrong, rank by rank: failures first, then ranks that died or did not answer."""
    texts, sections, unlike = {}, [], {r.outcome for reports in of_ranks for r in reports if r.when == "call"}
    for rank, reports in enumerate(of_ranks):
        for report in reports:
            if report.outcome == "failed" or (len(unlike) > 1 and report.outcome == "skipped"):
                texts.setdefault(_what(report), []).append(rank)
                sections += [(f"rank {rank}: {title}", text) for title, text in report.sections]
    for rank, text in answer.trouble.items():
        texts.setdefault(text, []).append(rank)
    lines = [f"{_ranks(ranks)} of {key.ranks} {text}" for text, ranks in texts.items()]
    if answer.notes.strip():
        sections.append(("mpirun", answer.notes))
    return pytest.TestReport(
        item.nodeid, item.location, dict.fromkeys(item.keywords, 1), "failed", "\n\n".join(lines), when, sections,
        duration=max((r.duration for reports in of_ranks for r in reports), default=0.0), start=0.0, stop=0.0,
    )  # fmt: skip


def _what(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    said = crash.message.splitlines()[0] if crash and crash.message else ""
    return f"{report.outcome} in {report.when}: {said}\n{report.longreprtext}"


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
