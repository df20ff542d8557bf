"""What is wrong with what `facts` found, and what to do: errors, with which no training could work, and less."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from horovod_sign.building import again_line, first_line
from horovod_sign.doctor.tested import never_tested
from horovod_sign.launched import alone_among_many

ERROR, WARNING, NOTE = "error", "warning", "note"


class Finding(NamedTuple):
    """One thing that is not as it should be.

    Attributes:
        level: ERROR, WARNING or NOTE.
        what: a sentence.
        remedy: what to do.
    """

    level: str
    what: str
    remedy: str


def examine(facts: dict) -> list[Finding]:
    """What can be told without asking other ranks, the gravest first."""
    checks = (_frameworks, _horovod, _launch, _crashes, _mpi, _threads, _gpus, _kernels, _versions)
    return in_order(finding for check in checks for finding in check(facts))


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The gravest first."""
    return sorted(findings, key=lambda finding: (ERROR, WARNING, NOTE).index(finding.level))


def examine_ranks(facts: dict, mpi_size: int | None, horovod_size: int | None) -> list[Finding]:
    """What the sizes tell that MPI and Horovod see, against the launcher's. None: not asked."""
    launch, sizes = facts["launch"], {size for size in (mpi_size, horovod_size) if size is not None}
    if not sizes:
        return []
    alone = alone_among_many(min(sizes))
    if alone is not None and len(sizes) == 1:
        what, _, remedy = alone.partition(". ")
        return [Finding(ERROR, what, remedy)]
    if len(sizes) > 1:
        what = f"mpi4py sees {mpi_size} ranks, and Horovod {horovod_size}"
        return [Finding(ERROR, what, f"build both for the MPI whose mpirun starts them: {again_line()} mpi4py")]
    if launch["by"] != "PMIX_RANK" and launch["started"] not in sizes:
        what = f"{launch['by']} says that {launch['started']} processes were started, but {sizes.pop()} ranks are here"
        return [Finding(ERROR, what, "start the training by one launcher alone, that of Horovod's MPI")]
    return []


def crashing(facts: dict) -> list[str]:
    """The variables that end Horovod 0.28.1 under mpirun, in `init` or in an allgather."""
    launch = facts["launch"]
    if launch["by"] in (None, "HOROVOD_SIZE"):
        return []
    names = ("HOROVOD_CONTROLLER", "HOROVOD_CPU_OPERATIONS")
    return [name for name in names if launch["variables"].get(name, "").lower() == "gloo"]


def _frameworks(facts: dict) -> Iterator[Finding]:
    adapters = facts["adapters"]
    works = [name for name, each in adapters.items() if each["works"]]
    for name, each in adapters.items():
        if each["framework"] and not each["works"] and (name != "tensorflow.keras" or adapters["tensorflow"]["works"]):
            what, _, remedy = _split(each["why_not"])
            yield Finding(WARNING if works else ERROR, f"horovod_sign.{name} does not work: {what}", remedy)
    if not works and not any(each["framework"] for each in adapters.values()):
        level = NOTE if facts["mpi"]["why_not"] is None else ERROR
        what = "there is neither PyTorch nor TensorFlow, so that only NumPy arrays can be voted on"
        yield Finding(level, what, "pip install torch, or tensorflow, and then Horovod for it: see README.md")


def _horovod(facts: dict) -> Iterator[Finding]:
    horovod, adapters = facts["horovod"], facts["adapters"]
    if not horovod["installed"] and any(each["framework"] for each in adapters.values()):
        yield Finding(ERROR, "Horovod is not installed", first_line())
    if horovod["built_with"] and not (horovod["built_with"]["mpi"] or horovod["built_with"]["gloo"]):
        yield Finding(ERROR, "Horovod was built without MPI and without Gloo", again_line("HOROVOD_WITH_MPI=1"))


def _launch(facts: dict) -> Iterator[Finding]:
    launch, built = facts["launch"], facts["horovod"]["built_with"]
    variables = launch["variables"]
    if launch["by"] not in (None, "HOROVOD_SIZE") and built and not built["mpi"]:
        what = "these ranks were started by MPI, and Horovod was built without it"
        yield Finding(ERROR, what, f"{again_line('HOROVOD_WITH_MPI=1')}, or start by horovodrun --gloo")
    if launch["by"] == "HOROVOD_SIZE" and built and not built["gloo"]:
        what = "these ranks were started by horovodrun --gloo, and Horovod was built without Gloo"
        yield Finding(ERROR, what, f"{again_line('HOROVOD_WITH_GLOO=1')}, or start by mpirun")
    tasks = variables.get("SLURM_NTASKS", "")
    if launch["by"] is None and tasks.isdecimal() and int(tasks) > 1:
        what = f"Slurm gave {tasks} tasks (SLURM_NTASKS), and this is one process"
        yield Finding(NOTE, what, "start the training by mpirun, or by srun --mpi=pmix")
    if variables.get("HOROVOD_ELASTIC") == "1" and launch["by"] != "HOROVOD_SIZE":
        what = "HOROVOD_ELASTIC=1 is set, and this is no elastic job"
        yield Finding(WARNING, what, "unset HOROVOD_ELASTIC")


def _crashes(facts: dict) -> Iterator[Finding]:
    for name in crashing(facts):
        yield Finding(ERROR, f"{name}=gloo under mpirun crashes Horovod", f"unset {name}, or use horovodrun --gloo")


def _mpi(facts: dict) -> Iterator[Finding]:
    mpi = facts["mpi"]
    if mpi["another"]:
        what, _, remedy = mpi["why_not"].rpartition(": ")
        yield Finding(
            WARNING, f"mpi4py is of another MPI than Horovod, whose engine then carries all votes: {what}", remedy
        )
    elif mpi["why_not"] is not None:
        what, _, remedy = _split(mpi["why_not"])
        yield Finding(NOTE, f"small models vote faster with mpi4py, and NumPy arrays only with it: {what}", remedy)


def _threads(facts: dict) -> Iterator[Finding]:
    mpi, kernels = facts["mpi"], facts["kernels"]
    disabled = facts["launch"]["variables"].get("HOROVOD_MPI_THREADS_DISABLE") == "1"
    if mpi["all_threads"] is False or (disabled and mpi["library"]):
        what = "MPI is not to be called by several threads, so that votes go by Horovod's engine alone"
        remedy = "unset HOROVOD_MPI_THREADS_DISABLE" if disabled else "build MPI with MPI_THREAD_MULTIPLE"
        yield Finding(WARNING, what, remedy)
    if kernels["threads"] > facts["cores"]:
        what = f"the kernels run {kernels['threads']} threads, and this process may use {facts['cores']} cores"
        yield Finding(NOTE, what, f"OMP_NUM_THREADS={facts['cores']}, or let mpirun bind more cores to a rank")


def _gpus(facts: dict) -> Iterator[Finding]:
    gpus, built = facts["gpus"], facts["horovod"]["built_with"]
    of_torch = gpus["torch_cuda"] or gpus["torch_rocm"]
    if gpus["in_machine"] and not gpus["names"] and gpus["tensorflow_cuda"] is not True:
        why = "PyTorch sees none of them" if of_torch else "no framework here is built for them"
        what = f"this machine has {gpus['in_machine']} NVIDIA GPUs, and {why}"
        yield Finding(WARNING, what, "check nvidia-smi and CUDA_VISIBLE_DEVICES" if of_torch else "pip install torch")
    if gpus["names"] and built and not (built["nccl"] or built["cuda"] or built["rocm"]):
        what = "PyTorch has GPUs, and Horovod was built for CPUs: what it reduces or broadcasts itself goes by the host"
        yield Finding(WARNING, what, again_line("HOROVOD_GPU_OPERATIONS=NCCL"))
    if built and built["cuda"] and gpus["torch_cuda"] is None and not gpus["tensorflow_cuda"]:
        what = "Horovod was built for GPUs, and neither PyTorch nor TensorFlow here is"
        yield Finding(WARNING, what, "install a build of PyTorch or TensorFlow for CUDA, and Horovod again")


def _kernels(facts: dict) -> Iterator[Finding]:
    forced = facts["launch"]["variables"].get("HOROVOD_SIGN_KERNELS")
    best = next((name for name in ("avx512", "avx2", "neon") if name in facts["kernels"]["supported"]), "scalar")
    if forced and facts["kernels"]["in_use"] != best:
        what = f"HOROVOD_SIGN_KERNELS={forced} keeps the faster {best} kernels from being used"
        yield Finding(NOTE, what, "unset HOROVOD_SIGN_KERNELS")
    elif best == "scalar":
        yield Finding(NOTE, "this processor has no kernels of its own here, and packs bits slowly", "nothing")


def _versions(facts: dict) -> Iterator[Finding]:
    others = never_tested(facts["versions"])
    if others:
        what = f"never tested together: {', '.join(others)}"
        yield Finding(NOTE, what, "nothing, if the self-test of some ranks passes: mpirun -np 2 python -m horovod_sign")


def _split(sentence: str) -> tuple[str, str, str]:
    """What is wrong, and what to do, of a sentence of ours; if it is not, the whole."""
    what, colon, remedy = sentence.rpartition("): ")
    if colon:
        return f"{what})", colon, remedy
    what, colon, remedy = sentence.partition(": ")
    return what, colon, remedy or "see README.md"
