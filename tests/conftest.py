"""Starts ranks for tests that need them: see `launches`, in tests/support, and tests/README.md. Shared fixtures."""

import contextlib
import importlib
import os
import shlex
import sys
from pathlib import Path

import pytest
from launches.garbage import import_without_collections

import_without_collections()
SOCKET = os.environ.get("HOROVOD_SIGN_TEST_SOCKET")
# The kernels for GPUs run on CPU tensors by Triton's interpreter. It is asked for where Triton is imported first.
# TRITON_INTERPRET=0 pytest tests/torch/test_devices.py has them run on a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
# After TensorFlow its import ends the process: so it comes first, or, on ranks that may have TensorFlow, not at all.
if not SOCKET:
    with contextlib.suppress(ImportError):
        import triton  # noqa: F401
elif os.environ["HOROVOD_SIGN_TEST_FRAMEWORK"] != "torch":
    sys.modules.setdefault("triton", None)


def pytest_addoption(parser):
    parser.addoption(
        "--ranks",
        type=lambda text: [int(n) for n in text.split(",")],
        default=[],
        metavar="N[,N]",
        help="run tests that need ranks on N of them",
    )
    parser.addoption(
        "--quick", action="store_true", help="only what a change most often breaks: core/, and what is marked quick"
    )
    parser.addoption(
        "--processor", action="store_true", help="say in the end how much time of processor launches and tests took"
    )
    parser.addoption(
        "--mpirun",
        type=shlex.split,
        default=[],
        metavar="COMMAND",
        help="starts ranks, given their number; default: ci/run",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "ranks(*counts): the rank counts of this test, in place of those of its file")
    config.addinivalue_line("markers", "limit(seconds): for this test on ranks, in place of 60")
    config.addinivalue_line("markers", "fault(row, framework): proves a row of docs/robustness.md: see ci/faults.py")
    config.addinivalue_line("markers", "asleep: waits for most of its time, so it begins first, beside others")
    config.addinivalue_line("markers", "quick: among what --quick runs, on one of its rank counts")
    if SOCKET:
        from launches.rank import RankPlugin

        plugin = RankPlugin(SOCKET, os.environ["HOROVOD_SIGN_TEST_FRAMEWORK"])
    else:
        # Tests are collected by importing them, and this process must not become an MPI process by that.
        import mpi4py

        mpi4py.rc.initialize = False
        from launches.parent import ParentPlugin

        plugin = ParentPlugin(config.getoption("ranks"), config.getoption("mpirun"))
        if config.getoption("quick"):
            from launches.quick import QuickPlugin

            config.pluginmanager.register(QuickPlugin())
        if config.getoption("processor"):
            from launches.processor import ProcessorPlugin
            from launches.sharing import group_of

            config.pluginmanager.register(ProcessorPlugin(group_of))
    config.pluginmanager.register(plugin, "launches")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from launches.sharing import LaunchScheduling

    config.option.loadscopereorder = False
    return LaunchScheduling(config, log)


@pytest.fixture
def comm():
    """mpi4py's communicator of all ranks."""
    from mpi4py import MPI

    return MPI.COMM_WORLD


@pytest.fixture
def shared_folder(comm, tmp_path, monkeypatch):
    """The current folder: an empty one, the same for all ranks."""
    monkeypatch.chdir(comm.bcast(str(tmp_path)))
    yield
    comm.Barrier()


@pytest.fixture
def example(monkeypatch):
    """Imports a script of examples/, such as "reproduce/images", as if it was started: its folder comes first."""
    torch = sys.modules.get("torch")
    threads = torch and torch.get_num_threads()

    def load(name: str):
        path = Path(__file__).resolve().parents[1] / "examples" / name
        monkeypatch.syspath_prepend(str(path.parent))
        return importlib.import_module(path.name)

    yield load
    if torch:  # scripts take one thread
        torch.set_num_threads(threads)
