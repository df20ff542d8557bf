"""What is there, in the manner of `horovodrun --check-build`, and what is wrong: as text."""

from horovod_sign.doctor.findings import ERROR, Finding

_FRAMEWORKS = {"torch": "PyTorch", "tensorflow": "TensorFlow", "tensorflow.keras": "Keras"}
_VERSION_OF = {"tensorflow.keras": "keras"}
_SETS = ("avx512", "avx2", "neon", "scalar")


def inventory(facts: dict) -> str:
    """What this installation can do."""
    versions, kernels = facts["versions"], facts["kernels"]
    title = f"horovod_sign v{versions['horovod_sign']} (Python {versions['python']}, {versions['machine']}):"
    lines = [title, ""]
    lines += _section("Frameworks", [_framework(name, facts) for name in _FRAMEWORKS])
    lines += _section("Horovod", _horovod(facts))
    lines += _section("MPI", [_mpi(facts)])
    sets = [(name in kernels["supported"], name) for name in _SETS]
    lines += _section(f"Kernels (in use: {kernels['in_use']}, threads: {kernels['threads']})", sets)
    lines += _section("GPUs", [_gpus(facts["gpus"])])
    return "\n".join(lines)


def diagnosis(findings: list[Finding]) -> str:
    """What is wrong and what to do, and whether a training could work."""
    labels = {"error": "ERROR", "warning": "WARNING", "note": "Note"}
    lines = [f"{labels[each.level]}: {each.what}\n    -> {each.remedy}" for each in findings]
    errors = sum(each.level == ERROR for each in findings)
    if errors:
        return "\n".join([*lines, "A training could not work here: see the errors above."])
    return "\n".join([*lines, "Nothing is in the way of a training."])


def _section(title: str, rows: list[tuple[bool, str]]) -> list[str]:
    return [f"{title}:", *(f"    [{'X' if there else ' '}] {text}" for there, text in rows), ""]


def _framework(name: str, facts: dict) -> tuple[bool, str]:
    adapter, version = facts["adapters"][name], facts["versions"][_VERSION_OF.get(name, name)]
    if adapter["works"]:
        return True, f"{_FRAMEWORKS[name]} {version} (import horovod_sign.{name} as hvd)"
    return False, f"{_FRAMEWORKS[name]} ({adapter['why_not']})"


def _horovod(facts: dict) -> list[tuple[bool, str]]:
    version, built = facts["versions"]["horovod"], facts["horovod"]["built_with"]
    if version is None:
        return [(False, "Horovod")]
    if built is None:
        return [(False, f"Horovod {version}, without a binding that works here")]
    return [(True, f"Horovod {version}"), *((there, feature) for feature, there in built.items())]


def _mpi(facts: dict) -> tuple[bool, str]:
    mpi = facts["mpi"]
    if mpi["why_not"] is not None:
        return False, f"mpi4py, which horovod_sign.majority_vote needs ({mpi['why_not']})"
    return True, f"{mpi['library']}, mpi4py {facts['versions']['mpi4py']} (horovod_sign.majority_vote)"


def _gpus(gpus: dict) -> tuple[bool, str]:
    if not gpus["names"]:
        return False, "none that PyTorch sees; votes on CPU tensors"
    return True, f"{len(gpus['names'])} ({', '.join(sorted(set(gpus['names'])))})"
