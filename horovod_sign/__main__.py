"""`python -m horovod_sign`: what this installation can do; under mpirun or horovodrun also a vote of all ranks.

python -m horovod_sign
mpirun -np 4 python -m horovod_sign
"""

import importlib
import importlib.metadata
import os
import platform
import sys

import numpy as np

from horovod_sign import majority_vote
from horovod_sign.algebra import kernels, supported
from horovod_sign.version import __version__

FEATURES = ("mpi", "gloo", "nccl", "cuda", "rocm", "ddl", "ccl")
LAUNCHED_BY_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK")


def main() -> int:
    """Prints the report on rank 0; the exit status is 1 if the self-test vote failed."""
    launched_by_mpi = any(name in os.environ for name in LAUNCHED_BY_MPI)
    comm = _world() if launched_by_mpi else None
    if comm is None or comm.rank == 0:
        print(report(), flush=True)
    return 0 if comm is None or self_test(comm) else 1


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


def self_test(comm) -> bool:
    """A vote of all ranks by each transport, against NumPy; says so on rank 0."""
    passed = True
    for transport in ("exchange", "counts"):
        for abstain in (True, False):
            inputs = [_input(rank) for rank in range(comm.size)]
            signs = [np.sign(np.nan_to_num(x)) if abstain else np.where(x < 0, -1, 1) for x in inputs]
            total = np.sum(signs, axis=0)
            expected = np.sign(total) if abstain else np.where(total < 0, -1, 1)
            vote = majority_vote(inputs[comm.rank], comm, abstain=abstain, transport=transport)
            passed &= np.array_equal(vote, expected)
    failed = [rank for rank, good in enumerate(comm.allgather(bool(passed))) if not good]
    if comm.rank == 0:
        verdict = f"FAILED on ranks {failed}" if failed else "votes are those of NumPy, bit for bit"
        print(f"Self-test of {comm.size} ranks: {verdict}", flush=True)
    return not failed


def _input(rank: int) -> np.ndarray:
    random = np.random.default_rng(rank)
    x = random.standard_normal(100_003).astype(np.float32)
    x[random.random(len(x)) < 0.2] = random.choice(np.array([0.0, -0.0, np.nan, np.inf, -np.inf], np.float32))
    return x


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
    for module in ("horovod.torch", "horovod.tensorflow"):
        if module in sys.modules:
            built = [bool(getattr(sys.modules[module], f"{feature}_built")()) for feature in FEATURES]
            return [(True, f"Horovod {version}"), *zip(built, FEATURES, strict=True)]
    return [(False, f"Horovod {version}, without a binding that works here")]


def _mpi() -> tuple[bool, str]:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        return False, f"mpi4py ({error}): majority_vote needs it: pip install mpi4py"
    library = MPI.Get_library_version().split(",")[0].strip("\0\n ")
    return True, f"{library}, mpi4py {importlib.metadata.version('mpi4py')} (horovod_sign.majority_vote)"


def _gpus() -> tuple[bool, str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return False, "none that PyTorch sees; votes on CPU tensors"
    names = sorted({torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())})
    return True, f"{torch.cuda.device_count()} ({', '.join(names)})"


def _world():
    try:
        from mpi4py import MPI
    except ImportError:
        return None
    return MPI.COMM_WORLD


if __name__ == "__main__":
    sys.exit(main())
