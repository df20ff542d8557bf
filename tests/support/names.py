"""Horovod's public names against ours."""

import importlib

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
    modules = {name for name in public_names(horovods) if name in ("compression", "keras")}  # of ours, not offered
    assert set(public_names(horovods)) - modules <= set(adapter.__all__)
    assert not {name for name in adapter.__all__ if name.startswith("_")}
    namespace = {}
    exec(f"from {adapter.__name__} import *", namespace)
    assert set(adapter.__all__) <= set(namespace)
