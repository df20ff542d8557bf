"""What the documentation says of the checkout is so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "tests" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tests_that_are_named_exist(document):
    named = set(re.findall(r"\b(tests/[\w/]+\.py)(?:::(\w+))?", document.read_text()))
    missing = [
        f"{path}::{test}"
        for path, test in sorted(named)
        if not (ROOT / path).is_file() or (test and f"def {test}(" not in (ROOT / path).read_text())
    ]
    assert not missing


def checked(script: str) -> str:
    """What a script of ci/ finds wrong."""
    return subprocess.run([sys.executable, ROOT / "ci" / script, "--check"], capture_output=True, text=True).stderr


def test_rows_of_faults_name_the_tests_that_are_marked():
    assert checked("faults.py") == ""
