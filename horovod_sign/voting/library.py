"""mpi4py's MPI module, if it is the MPI that this process already holds.

Horovod's library brings an MPI into the process, and mpi4py may be built for another, or be told to load another one
(`MPI4PY_MPIABI`, `MPI4PY_LIBMPI`). Two of them in one process end in a segmentation fault, which no `except` sees. So
what mpi4py would load is read from its extension module before that is imported.
"""

import contextlib
import functools
import importlib.util
import os
import re
import sys
import warnings
from typing import Any

_MAPS = "/proc/self/maps"  # what Linux has loaded into this process; elsewhere there is no such check
_LIBRARY = re.compile(r"libmpi(ch)?(_abi)?\.so(\.|$)")
_NEEDED = re.compile(rb"\0(libmpi[\w.+-]*)\0")


def load_mpi(initialize: bool = True) -> Any:
    """mpi4py's MPI module.

    Args:
        initialize: whether to start MPI, if it was not started. Where Horovod has not, it is not Horovod's MPI.

    Raises:
        ImportError: in one sentence, why there is none.
    """
    loaded = sys.modules.get("mpi4py.MPI")
    if loaded is not None:
        return loaded
    try:
        import mpi4py
    except ImportError as error:
        raise ImportError("mpi4py is not installed: pip install mpi4py (with your cluster's MPI on PATH)") from error
    refuse_another_mpi()
    usual = mpi4py.rc.initialize
    mpi4py.rc.initialize = usual and initialize
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # built for another MPI, or none is found
        first = str(error).partition("\n")[0]
        raise ImportError(f"mpi4py finds no MPI library ({first}): reinstall it with your cluster's MPI") from error
    finally:
        mpi4py.rc.initialize = usual
    return MPI


def refuse_another_mpi() -> None:
    """Raises `AnotherMPI` if this process holds an MPI library, and mpi4py would load another one."""
    held = held_libraries()
    if not held or "mpi4py.MPI" in sys.modules:
        return
    extension, needed = needed_libraries()
    if needed and not any(os.path.basename(path).startswith(name) for path in held for name in needed):
        named = [name for name in ("MPI4PY_MPIABI", "MPI4PY_LIBMPI") if name in os.environ]
        remedy = f"unset {' and '.join(named)}" if named else "pip install --force-reinstall --no-binary mpi4py mpi4py"
        raise AnotherMPI(
            f"mpi4py would load {needed[0]} ({extension}) into a process that holds another MPI, {held[0]}, and would "
            f"crash: {remedy}"
        )


class AnotherMPI(ImportError):
    """mpi4py and this process have different MPI libraries."""


def held_libraries() -> list[str]:
    """The paths of MPI libraries in this process."""
    try:
        with open(_MAPS) as maps:
            paths = {line.split(maxsplit=5)[5].strip() for line in maps if "libmpi" in line}
    except OSError:
        return []
    return sorted(path for path in paths if _LIBRARY.match(os.path.basename(path)))


def needed_libraries() -> tuple[str, list[str]]:
    """The file of mpi4py's extension module that an import would load, and the names of the libraries that it needs."""
    spec = None
    with contextlib.suppress(ImportError, RuntimeError, ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the import will say it
        spec = importlib.util.find_spec("mpi4py.MPI")
    if spec is None or not spec.origin:
        return "", []
    try:
        with open(spec.origin, "rb") as file:
            return spec.origin, sorted({name.decode() for name in _NEEDED.findall(file.read())})
    except OSError:
        return spec.origin, []


@functools.cache
def usable_mpi() -> Any:
    """mpi4py's MPI module, not started here, or None; a warning where it would load another MPI than Horovod's."""
    try:
        return load_mpi(initialize=False)
    except AnotherMPI as error:
        warnings.warn(f"votes go by Horovod's engine alone: {error}", RuntimeWarning, stacklevel=2)
    except ImportError:
        pass
    return None


def mpi_beside(hvd: Any) -> Any:
    """mpi4py's MPI module, if beside Horovod it reaches the same ranks by the same numbers, from any thread; else None.

    Args:
        hvd: Horovod for the framework, initialised.
    """
    MPI = usable_mpi() if hvd.mpi_enabled() else None
    if MPI is None or not MPI.Is_initialized() or MPI.Query_thread() != MPI.THREAD_MULTIPLE:
        return None
    return MPI if (MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size) == (hvd.rank(), hvd.size()) else None
