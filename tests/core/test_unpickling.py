"""Nothing from elsewhere is unpickled: what docs/security.md says of our own code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FILES = [
    path for folder in ("horovod_sign", "examples", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))
]


def unsafe(source: str) -> list[str]:
    """The lines that could unpickle: a module that does, torch.load or numpy.load without what forbids it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        if any(name.split(".")[0] in UNPICKLERS for name in names):
            found.append(ast.unparse(node))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if given.get("weights_only") != "True" and given.get("allow_pickle") != "False":
                found.append(ast.unparse(node))
    return found


def test_files_are_read_without_pickle():
    assert {str(path.relative_to(ROOT)): unsafe(path.read_text()) for path in FILES if unsafe(path.read_text())} == {}


@pytest.mark.parametrize("source", ["torch.load(path)", "np.load(path, allow_pickle=True)", "from pickle import loads"])
def test_that_would_be_noticed(source):
    assert unsafe(source) and not unsafe("torch.load(path, weights_only=True); np.load(path, allow_pickle=False)")
