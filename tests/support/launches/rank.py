"""The half of the plugin that runs on each rank: does what the parent says, one test at a time, and sends reports."""

import contextlib
import faulthandler
import importlib
import json
import os
import queue
import signal
import socket
import threading

import imports
import pytest
from ranks import RANK, SIZE

from launches.garbage import collect_what_comes
from launches.processor import seconds


class RankPlugin:
    """Registered by conftest.py where the environment names the parent's socket."""

    def __init__(self, path: str, framework: str):
        self._framework, self._config = framework, None
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(path)
        self._send({"rank": RANK, "pid": os.getpid()})
        # Where this rank stands, also in the middle of a call that does not return: for the parent's report.
        self._log = open(f"{os.path.dirname(path)}/rank{RANK}", "a")  # noqa: SIM115 - for the life of the process
        faulthandler.register(signal.SIGUSR1, file=self._log, all_threads=True)

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config):
        self._config = config

    @pytest.hookimpl(tryfirst=True)  # as in the parent, or ids differ where a fixture has parameters
    def pytest_generate_tests(self, metafunc):
        from launches.parent import parametrize_ranks

        parametrize_ranks(metafunc, [SIZE])

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self):
        initialise(self._framework)

    def pytest_runtestloop(self, session):
        if session.testsfailed:
            raise session.Failed("collection failed")
        items = {item.nodeid: item for item in session.items}
        orders = queue.SimpleQueue()
        threading.Thread(target=self._listen, args=(orders,), daemon=True).start()
        collect_what_comes()
        self._send({"ready": True, "processor": seconds()})
        while (order := orders.get()) is not None:
            item, following = (items.get(nodeid) for nodeid in order)
            if item is None:
                raise session.Failed(f"rank {RANK} has no test {order[0]}: tests must not depend on the rank")
            before = seconds()
            self._config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            self._send({"done": True, "processor": seconds() - before})
        return True

    def pytest_runtest_logreport(self, report):
        self._send(self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    def _send(self, message):
        self._connection.sendall(json.dumps(message, default=str).encode() + b"\n")

    def _listen(self, orders):
        """The parent's orders. Soon after it has gone, so is this rank."""
        with contextlib.suppress(OSError):  # a parent that was killed resets the connection
            for line in self._connection.makefile("rb"):
                orders.put(json.loads(line))
        orders.put(None)
        # A test that still runs is of no use any more, and neither is a shutdown that waits for other ranks.
        threading.Timer(15, os._exit, [1]).start()


def initialise(framework: str):
    """MPI, then Horovod for the framework, with process sets that tests may add and remove."""
    if framework in ("torch", "tensorflow"):
        from mpi4py import MPI  # noqa: F401 - before Horovod, which else finalizes MPI in its shutdown

        if framework == "tensorflow":
            imports.import_keras()  # as horovod.tensorflow does
        importlib.import_module(f"horovod.{framework}").init(process_sets="dynamic")
