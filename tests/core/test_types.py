"""Every public name of ours has a signature that says all: what an editor shows, and mypy reads."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "horovod_sign"
PUBLIC = [
    "algebra/__init__",
    "building/horovod_cmake",
    "keywords",
    "rules",
    "statistics",
    "supported",
    "voting/mpi",
    "torch/adversaries",
    "torch/checkpoints",
    "torch/compression",
    "torch/distributed",
    "torch/elastic",
    "torch/optimizers",
    "tensorflow/broadcasting",
    "tensorflow/compression",
    "tensorflow/elastic",
    "tensorflow/tape",
    "tensorflow/wrappers",
    "tensorflow/keras/callbacks",
    "tensorflow/keras/distributed",
    "tensorflow/keras/elastic",
    "tensorflow/keras/optimizers",
    "tensorflow/keras/saving",
]


def untyped(body: list[ast.stmt], within: str = "") -> list[str]:
    """The public functions and methods in a module or class that lack the type of something."""
    found = []
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found += untyped(node.body, f"{node.name}.")
        if not isinstance(node, ast.FunctionDef) or (node.name.startswith("_") and node.name != "__init__"):
            continue
        given = node.args
        named = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
        lacking = [each.arg for each in named if each.annotation is None and each.arg not in ("self", "cls")]
        lacking += ["return"] if node.returns is None else []
        found += [f"{within}{node.name}: {', '.join(lacking)}"] if lacking else []
    return found


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_have_full_signatures(name):
    assert untyped(ast.parse((PACKAGE / f"{name}.py").read_text()).body) == []


def test_what_lacks_a_type_is_found():
    source = "class A:\n def __init__(self, a): ...\n def _b(self, c): ...\ndef d(*e: int, **f) -> None: ...\n"
    assert untyped(ast.parse(source).body) == ["A.__init__: a, return", "d: f"]


def test_the_package_says_that_it_has_types():
    assert (PACKAGE / "py.typed").exists()
