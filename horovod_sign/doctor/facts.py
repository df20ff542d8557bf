"""What is installed here, and how this process was started: plain values, which `--json` prints."""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import Any

from horovod_sign.algebra import kernels, supported
from horovod_sign.doctor.quiet import quietly
from horovod_sign.launched import started_together
from horovod_sign.version import __version__
from horovod_sign.voting.library import AnotherMPI, load_mpi

FEATURES = ("mpi", "gloo", "nccl", "cuda", "rocm", "ddl", "ccl")
BINDINGS = ("horovod.torch", "horovod.tensorflow")
ADAPTERS = ("torch", "tensorflow", "tensorflow.keras")

# What a launcher or a user says to Horovod and to us.
_VARIABLES = (
    "HOROVOD_CONTROLLER",
    "HOROVOD_CPU_OPERATIONS",
    "HOROVOD_ELASTIC",
    "HOROVOD_MPI_THREADS_DISABLE",
    "HOROVOD_SIGN_KERNELS",
    "OMP_NUM_THREADS",
    "SLURM_NTASKS",
)


def collect() -> dict:
    """Imports all that is there. The dictionary is the same on ranks of equal installation, but for `launch`."""
    with quietly():  # PyTorch first: some builds of it do not load after TensorFlow
        adapters = {name: _adapter(name) for name in ADAPTERS}
        horovod = _horovod()
        gpus = _gpus()
    mpi = _mpi()
    return {
        "versions": _versions(mpi),
        "adapters": adapters,
        "horovod": horovod,
        "mpi": mpi,
        "kernels": {"in_use": kernels().name, "threads": kernels().threads, "supported": list(supported())},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": gpus,
        "launch": _launch(),
    }


def binding() -> Any:
    """Horovod for a framework that is there, or None."""
    return next((sys.modules[name] for name in BINDINGS if _works(sys.modules.get(name))), None)


def binding_over_mpi() -> Any:
    """Horovod for a framework that is there, if it was built with MPI, or None."""
    hvd = binding()
    return hvd if hvd is not None and hvd.mpi_built() else None


def import_binding() -> None:
    """Imports Horovod for a framework that is there, if it is for any."""
    for name in BINDINGS:
        with contextlib.suppress(Exception):  # of any kind: frameworks that are broken raise what they like
            if _works(importlib.import_module(name)):
                return


def _works(module: Any) -> bool:
    """Whether it is a binding: `horovod.torch` can be imported, empty, where Horovod was not built for PyTorch."""
    return hasattr(module, "mpi_built")


def _versions(mpi: dict) -> dict[str, str | None]:
    found = {name: _distribution(name) for name in ("torch", "keras", "horovod", "mpi4py", "numpy")}
    tensorflow = _distribution("tensorflow") or _distribution("tensorflow-cpu")
    python, machine = platform.python_version(), platform.machine()
    own = {"horovod_sign": __version__, "python": python, "machine": machine, "mpi": mpi["library"]}
    return {**own, **found, "tensorflow": tensorflow}


def _distribution(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _adapter(name: str) -> dict:
    """Whether an adapter can be imported, if not why, and whether its framework is there at all."""
    framework = name.split(".")[0]
    there = importlib.util.find_spec(framework) is not None
    try:
        importlib.import_module(f"horovod_sign.{name}")
    except Exception as error:  # of any kind: frameworks that are broken raise what they like
        return {"works": False, "why_not": str(error) or type(error).__name__, "framework": there}
    return {"works": True, "why_not": None, "framework": there}


def _horovod() -> dict:
    """The features that Horovod was built with, as its own check tells them, from whichever binding is there."""
    hvd = binding()
    built = None if hvd is None else {name: bool(getattr(hvd, f"{name}_built", lambda: False)()) for name in FEATURES}
    return {"installed": _distribution("horovod") is not None, "built_with": built}


def _mpi() -> dict:
    try:
        MPI = load_mpi()
    except ImportError as error:
        another = isinstance(error, AnotherMPI)
        return {"library": None, "why_not": str(error), "another": another, "all_threads": None}
    library = MPI.Get_library_version().split(",")[0].strip("\0\n ")
    many = MPI.Is_initialized() and MPI.Query_thread() == MPI.THREAD_MULTIPLE
    return {"library": library, "why_not": None, "another": False, "all_threads": bool(many)}


def _gpus() -> dict:
    torch: Any = sys.modules.get("torch")
    tensorflow: Any = sys.modules.get("tensorflow")
    seen = torch is not None and torch.cuda.is_available()
    return {
        "names": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if seen else [],
        "torch_cuda": None if torch is None else torch.version.cuda,
        "torch_rocm": None if torch is None else torch.version.hip,
        "tensorflow_cuda": None if tensorflow is None else bool(tensorflow.test.is_built_with_cuda()),
        "in_machine": sum(path.name[6:].isdecimal() for path in Path("/dev").glob("nvidia*")),
    }


def _launch() -> dict:
    variable, number = started_together()
    return {
        "by": variable or ("PMIX_RANK" if "PMIX_RANK" in os.environ else None),
        "started": number,
        "host": platform.node(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
