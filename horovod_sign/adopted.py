"""Horovod's own names beside ours: `import horovod_sign.torch as hvd` takes the place of Horovod's import."""

import pkgutil
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def adopt(namespace: dict, theirs: ModuleType, ours: list[str]) -> list[str]:
    """Puts into a module's namespace what Horovod's module of the same purpose names in public, except what is ours.

    So a name that some Horovod gains or lacks is there or missing as in that Horovod. Its modules can also be imported
    from here: `from horovod_sign.torch.mpi_ops import Sum`.

    Args:
        namespace: `globals()` of our module, when all of ours is there.
        theirs: Horovod's.
        ours: the public names that we define, in place of Horovod's or besides.

    Returns:
        The names that were put there.
    """
    own_modules = {module.name for module in pkgutil.iter_modules(namespace.get("__path__", []))}
    adopted = []
    for name in public_names(theirs):
        value = getattr(theirs, name)
        if name in ours or (isinstance(value, ModuleType) and name in own_modules):
            continue
        namespace[name] = value
        adopted.append(name)
        if isinstance(value, ModuleType):
            sys.modules.setdefault(f"{namespace['__name__']}.{name}", value)
    namespace.setdefault("__getattr__", _of_late_names(namespace["__name__"], theirs, own_modules))
    return adopted


def public_names(theirs: ModuleType) -> list[str]:
    """The names of a module of Horovod's that are meant for its users: not those of other packages' modules."""
    return [name for name in dir(theirs) if not name.startswith("_") and _is_horovods(getattr(theirs, name))]


def _of_late_names(ours: str, theirs: ModuleType, own_modules: set[str]) -> Callable[[str], Any]:
    """A module's `__getattr__`, for modules of Horovod's that are imported after ours. None of them is one of ours."""

    def __getattr__(name: str) -> Any:
        public = not name.startswith("_") and name not in own_modules and hasattr(theirs, name)
        if not public or not _is_horovods(getattr(theirs, name)):
            raise AttributeError(f"module {ours!r} has no attribute {name!r}")
        return getattr(theirs, name)

    return __getattr__


def _is_horovods(value: object) -> bool:
    return not isinstance(value, ModuleType) or value.__name__.split(".")[0] == "horovod"
