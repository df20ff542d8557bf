"""What `python -m horovod_sign` finds where all is well, to be changed by tests."""

from horovod_sign.doctor.tested import TESTED


def healthy(**launch) -> dict:
    """Facts with which nothing is wrong. `launch`: of the launcher."""
    works = {"works": True, "why_not": None, "framework": True}
    features = ("mpi", "gloo", "nccl", "cuda", "rocm", "ddl", "ccl")
    versions = {name: f"{tested[0]}.1" for name, tested in TESTED.items()}
    return {
        "versions": {"horovod_sign": "0.1.0", "machine": "x86_64", "numpy": "2.4.6", "mpi": "Open MPI", **versions},
        "adapters": {name: dict(works) for name in ("torch", "tensorflow", "tensorflow.keras")},
        "horovod": {"installed": True, "built_with": {name: name in ("mpi", "gloo") for name in features}},
        "mpi": {"library": "Open MPI v5.0.11", "why_not": None, "another": False, "all_threads": True},
        "kernels": {"in_use": "avx2", "threads": 2, "supported": ["avx2", "scalar"]},
        "cores": 2,
        "gpus": {"names": [], "torch_cuda": None, "torch_rocm": None, "tensorflow_cuda": False, "in_machine": 0},
        "launch": {"by": None, "started": 1, "host": "here", "variables": {}, **launch},
    }
