"""`python -m horovod_sign`: what this installation can do; under mpirun or horovodrun also a vote of all ranks.

python -m horovod_sign
mpirun -np 4 python -m horovod_sign
"""

import importlib
import importlib.metadata
import os
import platform
import sys

from horovod_sign import selftest
from horovod_sign.algebra import kernels, supported
from horovod_sign.launched import alone_among_many, started_together
from horovod_sign.version import __version__
from horovod_sign.voting.library import load_mpi

FEATURES = ("mpi", "gloo", "nccl", "cuda", "rocm", "ddl", "ccl")
BINDINGS = ("horovod.torch", "horovod.tensorflow")


def main() -> int:
    """Prints the report on rank 0; the exit status is 1 if the self-test vote failed."""
    text = report()
    ranks, why = _ranks()
    alone = alone_among_many(1 if ranks is None else ranks.size)
    if ranks is None or ranks.rank == 0:
        print(text, *([f"WARNING: {alone}"] if alone else []), *([why] if why else []), sep="\n", flush=True)
    return 0 if ranks is None or self_test(ranks) else 1


def report() -> str:
    """What this installation can do, in the manner of `horovodrun --check-build`."""
    lines = [f"horovod_sign v{__version__} (Python {platform.python_version()}, {platform.machine()}):", ""]
    lines += _section("Frameworks", [_framework("torch", "PyTorch"), _framework("tensorflow", "TensorFlow")])
    lines += _section("Horovod", _horovod())
    lines += _section("MPI", [_mpi()])
    sets = [(name in supported(), name) for name in ("avx512", "avx2", "neon", "scalar")]
    lines += _section(f"Kernels (in use: {kernels().name}, threads: {kernels().threads})", sets)
    lines += _section("GPUs", [_gpus()])
    return "\n".join(lines)


def self_test(ranks) -> bool:
    """A vote of all ranks by each transport, against NumPy; says so on rank 0."""
    outcome = selftest.run(ranks)
    if ranks.rank == 0:
        right = f"votes by {' and '.join(outcome.tried)} are those of NumPy, bit for bit"
        verdict = f"FAILED on ranks {outcome.failed}" if outcome.failed else right
        print(f"Self-test of {ranks.size} ranks over {ranks.name}: {verdict}", flush=True)
    return not outcome.failed


def _section(title: str, rows: list[tuple[bool, str]]) -> list[str]:
    return [f"{title}:", *(f"    [{'X' if there else ' '}] {text}" for there, text in rows), ""]


def _framework(module: str, name: str) -> tuple[bool, str]:
    """Whether the adapter of a framework can be imported, and if not, why."""
    try:
        importlib.import_module(f"horovod_sign.{module}")
    except ImportError as error:
        return False, f"{name} ({error})"
    return True, f"{name} {importlib.import_module(module).__version__} (import horovod_sign.{module} as hvs)"


def _horovod() -> list[tuple[bool, str]]:
    """The features that Horovod was built with, as its own check tells them, from whichever binding is there."""
    try:
        version = importlib.metadata.version("horovod")
    except importlib.metadata.PackageNotFoundError:
        return [(False, "Horovod (pip install horovod)")]
    hvd = _binding()
    if hvd is not None:
        built = [bool(getattr(hvd, f"{feature}_built")()) for feature in FEATURES]
        return [(True, f"Horovod {version}"), *zip(built, FEATURES, strict=True)]
    return [(False, f"Horovod {version}, without a binding that works here")]


def _mpi() -> tuple[bool, str]:
    try:
        MPI = load_mpi()
    except ImportError as error:
        return False, f"mpi4py, which horovod_sign.majority_vote needs ({error})"
    library = MPI.Get_library_version().split(",")[0].strip("\0\n ")
    return True, f"{library}, mpi4py {importlib.metadata.version('mpi4py')} (horovod_sign.majority_vote)"


def _gpus() -> tuple[bool, str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return False, "none that PyTorch sees; votes on CPU tensors"
    names = sorted({torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())})
    return True, f"{torch.cuda.device_count()} ({', '.join(names)})"


def _binding():
    """Horovod for a framework that is there, or None."""
    return next((sys.modules[name] for name in BINDINGS if sys.modules.get(name) is not None), None)


def _ranks() -> tuple[selftest.ByMPI | selftest.ByHorovod | None, str]:
    """What all ranks vote by, if a launcher started them; or why they cannot."""
    launcher, number = started_together()
    if not launcher and "PMIX_RANK" not in os.environ:
        return None, ""
    over_mpi = launcher != "HOROVOD_SIZE"
    if over_mpi:
        try:
            return selftest.ByMPI(load_mpi().COMM_WORLD), ""
        except ImportError as error:
            why = f"without mpi4py ({error})"
    else:
        why = "by horovodrun --gloo"
    hvd = _binding()
    if hvd is None:
        return None, f"No self-test of the {number} ranks, started {why}: there is no Horovod to vote by"
    return selftest.ByHorovod(hvd), ""


if __name__ == "__main__":
    sys.exit(main())
