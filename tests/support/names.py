"""Horovod's public names against ours."""

import importlib
import importlib.metadata
import re
import types
from pathlib import Path

import pytest

from horovod_sign.adopted import public_names


def assert_all_there(replaced: dict[str, set[str]], theirs: str, ours: str):
    """Each public name of Horovod's modules is in ours: the same object, except those in `replaced`.

    Args:
        replaced: for each module of Horovod's the names that we replace.
        theirs, ours: what to call the packages.
    """
    for module, ours_instead in replaced.items():
        horovods = importlib.import_module(module)
        adapter = importlib.import_module(module.replace(theirs, ours, 1))
        names = public_names(horovods)
        assert len(names) > 3
        missing = [name for name in names if not hasattr(adapter, name)]
        assert not missing, f"{adapter.__name__} lacks {missing}"
        others = {name for name in names if getattr(adapter, name) is not getattr(horovods, name)}
        assert others == ours_instead, module


def assert_listed(adapter, horovods):
    """`__all__` and `dir` tell of all names, Horovod's and ours, once each, and they can be imported."""
    assert len(set(adapter.__all__)) == len(adapter.__all__)
    assert set(adapter.__all__) <= set(dir(adapter))
    # Some come only when others are imported, and some of ours are not offered.
    modules = {name for name in public_names(horovods) if isinstance(getattr(horovods, name), types.ModuleType)}
    assert set(public_names(horovods)) - modules <= set(adapter.__all__)
    assert not {name for name in adapter.__all__ if name.startswith("_")}
    namespace = {}
    exec(f"from {adapter.__name__} import *", namespace)
    assert set(adapter.__all__) <= set(namespace)


def assert_documented(modules):
    """The tables of docs/coming-from-horovod.md tell, for each name, whether it is Horovod's, ours or new."""
    if importlib.metadata.version("horovod") != "0.28.1":
        pytest.skip("the tables are of Horovod 0.28.1")
    sections = _sections()
    for module in modules:
        horovods = importlib.import_module(module)
        adapter = importlib.import_module(module.replace("horovod", "horovod_sign", 1))
        names = {name for name in public_names(horovods) if not _is_left_out(name, getattr(horovods, name))}
        same = {name for name in names if getattr(adapter, name) is getattr(horovods, name)}
        new = set(adapter.__all__) - set(public_names(horovods))
        expected = {"Horovod's": same, "ours": names - same, "new": new}
        told = sections[module]
        for whose, there in expected.items():
            assert told.get(whose, set()) == there, f"{whose} in {module}"


def _is_left_out(name: str, value) -> bool:
    return isinstance(value, types.ModuleType) and name not in ("elastic", "callbacks")


def _sections() -> dict[str, dict[str, set[str]]]:
    """Names of each module by whose they are, as the document has them."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "coming-from-horovod.md").read_text()
    found = {}
    for module, body in re.findall(r"^### `([\w.]+)`\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL):
        for names, whose in re.findall(r"^\| (`[^|]*`) \| ([\w']+) \|", body, re.MULTILINE):
            found.setdefault(module, {}).setdefault(whose, set()).update(re.findall(r"`(\w+)`", names))
    return found
