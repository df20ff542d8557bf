"""What starts ranks for tests: whatever goes wrong on one rank is told with its number, and costs that test alone."""

import sys
from pathlib import Path

import pytest
from launching import launch

ROOT = Path(__file__).resolve().parents[2]
BROKEN = ROOT / "tests" / "support" / "broken_on_a_rank.py"
EXPECTED = {
    "good_before": ("PASSED", ""),
    "assertion": ("FAILED", "rank 2 of 3 failed in call: AssertionError: rank 2 is wrong"),
    "exception": ("FAILED", "rank 2 of 3 failed in call: KeyError: 'oops'"),
    "exit": ("FAILED", "rank 2 of 3 died"),
    "endless": ("FAILED", "rank 2 of 3 did not end in 2 s"),
    "crash": ("FAILED", "Fatal Python error: Segmentation fault"),
    "skipped_on_one": ("FAILED", "rank 2 of 3 skipped in call"),
    "skipped": ("SKIPPED", ""),
    "good_after": ("PASSED", ""),
}


@pytest.fixture(scope="module")
def report():
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", BROKEN]
    return launch(command, 200, cwd=ROOT)[1]


@pytest.mark.parametrize("test", EXPECTED)
def test_one_line_for_each_test(report, test):
    outcome, text = EXPECTED[test]
    assert f"test_{test}[3ranks] {outcome}" in report, report
    assert text in _section(report, test), report


def test_output_and_place_of_a_rank_are_shown(report):
    assert "said by 2" in _section(report, "assertion") and "said by 0" not in report
    assert "in test_endless" in _section(report, "endless")
    assert "in test_exception" in _section(report, "exception").split("rank 0 of 3", 1)[-1]


def test_one_command_runs_one_test_on_any_number_of_ranks():
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", BROKEN, "-k", "skipped", "--ranks", "2"]
    status, output = launch(command, 100, cwd=ROOT)
    assert status == 0 and "test_skipped[2ranks] SKIPPED" in output and "2 deselected" not in output, output


def _section(report: str, test: str) -> str:
    """What the report says of one failure."""
    _, found, rest = report.partition(f"_ test_{test}[3ranks] _")
    return rest.split("\n____", 1)[0] if found else ""
