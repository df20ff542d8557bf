"""What the documentation says of the checkout is so."""

import ast
import functools
import re
import shlex
import subprocess
import sys

import documents
import pytest
from documents import PAGES, ROOT

from horovod_sign.advise.report import ACCURACY

# Pages whose blocks are run, and by what; those without ranks here.
RUN = {
    "pytorch.md": "tests/torch/test_documents.py",
    "CONTRIBUTING.md": "tests/torch/test_documents.py",
    "ddp.md": "tests/torch/test_documents.py",
    "using.md": "tests/torch/test_documents.py",
    "keras.md": "tests/keras/test_documents.py",
    "tensorflow.md": "tests/keras/test_documents.py",
    "numpy.md": "tests/mpi/test_documents.py",
    "wire.md": "",
    "architecture.md": "",
}
# Of a user's own.
FOREIGN = {"tests/torch/test_example.py"}


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.name)
def test_tests_that_are_named_exist(document):
    named = set(re.findall(r"\b(tests/[\w/]+\.py)(?:::(\w+))?", document.read_text()))
    missing = [
        f"{path}::{test}"
        for path, test in sorted(named)
        if path not in FOREIGN
        if not (ROOT / path).is_file() or (test and f"def {test}(" not in (ROOT / path).read_text())
    ]
    assert not missing


def checked(script: str) -> str:
    """What a script of ci/ finds wrong."""
    return subprocess.run([sys.executable, ROOT / "ci" / script, "--check"], capture_output=True, text=True).stderr


def test_rows_of_faults_name_the_tests_that_are_marked():
    assert checked("faults.py") == ""


def test_all_messages_have_a_row():
    assert checked("messages.py") == ""


@pytest.mark.parametrize("page", [page for page, test in RUN.items() if not test])
def test_pages_run(page):
    documents.run_page(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_python_is_run_somewhere_or_says_why_not(page):
    blocks = [block for block in documents.blocks(page, "python") if block.runs]
    assert not blocks or page.name in RUN, f"line {blocks[0].line}: name a test in RUN, or write <!-- not run: why -->"
    if page.name in RUN:
        assert not RUN[page.name] or page.name in (ROOT / RUN[page.name]).read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_diffs_are_python_before_and_after(page):
    for block in documents.blocks(page, "diff"):
        ast.parse(block.before)
        ast.parse(block.after)


@functools.cache
def sources() -> str:
    """All programs of the checkout."""
    return "".join(
        path.read_text()
        for folder in ("horovod_sign", "benchmarks", "ci", "examples", "csrc", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".sh", ".cpp", ".h", ".sbatch", "")
        and path.is_file()
        and path.name not in ("test_documents.py", "documents.py")
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_commands_name_is_there(page):
    """Files of the checkout, options of its programs, variables that it reads."""
    for block in documents.blocks(page, "bash"):
        for word in shlex.split(block.text.replace("\\\n", " "), comments=True):
            if re.match(r"^(ci|tests|examples|benchmarks)/[\w./-]+$", word) and word not in FOREIGN:
                assert (ROOT / word).exists(), f"{page.name}:{block.line}: {word}"
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            ours = any(word.startswith(("horovod_sign", "benchmarks", "ci/", "examples/")) for word in words)
            for word in words if ours and "mpirun" not in words else []:
                if re.match(r"^--[a-z]", word) and "pip" not in words:
                    assert f'"{word.split("=")[0]}"' in sources() or f"{word} " in sources(), f"{page.name}: {line}"
        for variable in re.findall(r"\bHOROVOD_SIGN_\w+", block.text):
            assert variable in sources(), f"{page.name}: {variable}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    """Where GitHub shows a page; anchors are checked by ci/docs.sh."""
    links = re.findall(r"\]\(([^)\s#]+)[^)\s]*\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    dead = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not dead


def test_figures_are_those_of_the_records():
    """What stands between marks on the pages and in README, of docs/figures, which benchmarks write."""
    command = [sys.executable, "-m", "benchmarks", "figures", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and not result.stderr, result.stderr


def test_advise_says_how_far_off_it_was():
    """What the command prints of its predictions is what docs/advise.md has from the records."""
    said = re.search(r"\d+ of \d+ predictions were between half and twice", ACCURACY)
    assert said and said[0] in " ".join((ROOT / "docs/advise.md").read_text().split())


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
