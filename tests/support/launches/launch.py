"""One launch: so many ranks under mpirun, which run one test after the other until one of them goes wrong."""

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from launching import NOT_STARTED

ROOT = Path(__file__).resolve().parents[3]
START = 150  # seconds for ranks to start, import frameworks and collect
GRACE = 10  # seconds for the other ranks to end a test that has failed on one
LOG = 20_000  # characters of a rank's output in a report
_NOT_INHERITED = ("PYTEST_", "OMPI_COMM", "PMI_", "PMIX_", "PRTE_")
_NOT_THE_TEST = (
    "/_pytest/",
    "/pluggy/",
    "/pytest/__main__",
    "/launches/",
    "<frozen runpy>",
    "/threading.py",
    "readinto",
)


class Key(NamedTuple):
    """What ranks must have in common to share a launch.

    Attributes:
        framework: "mpi", "torch" or "tensorflow"; "none" for a file that initialises Horovod itself.
        ranks: how many.
        own: the file that has ranks of its own, else "".
    """

    framework: str
    ranks: int
    own: str = ""


class Answer(NamedTuple):
    """What came of one test.

    Attributes:
        reports: of each rank, pytest's reports in serialised form.
        trouble: what went wrong with the ranks themselves, by rank: died, or did not answer in time.
        notes: further output, to be shown if there is trouble.
        processor: seconds of all ranks together.
    """

    reports: list[list[dict]]
    trouble: dict[int, str]
    notes: str = ""
    processor: float = 0.0


class Launch:
    """Ranks under mpirun. They run `run(...)` one after the other; after trouble they are gone.

    Args:
        key: what they are.
        files: the test files that they collect.
        options: further options of pytest for each rank.
        mpirun: what starts ranks, but for their number.
    """

    def __init__(self, key: Key, files: list[str], options: list[str], mpirun: list[str]):
        self.key = key
        self._folder = Path(tempfile.mkdtemp(prefix="ranks-"))
        self._sockets: dict[int, socket.socket] = {}
        self._pids: dict[int, int] = {}
        self._partial = dict.fromkeys(range(key.ranks), b"")
        self.processor = 0.0  # seconds of all ranks: to start, then of one test
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(self._folder / "socket"))
            server.listen(key.ranks)
            for _ in range(2):
                self._process = self._start([*mpirun, str(key.ranks)], options + files)
                self._trouble = self._accept(server)
                if not self._trouble or NOT_STARTED not in self._notes():
                    break
                self._end_processes()

    @property
    def alive(self) -> bool:
        """Whether all ranks wait for a test."""
        return not self._trouble and self._process.poll() is None

    def run(self, item: str, following: str | None, limit: float) -> Answer:
        """Runs one test on all ranks.

        Args:
            item: its node id.
            following: that of the next test of this launch: fixtures that it shares live on.
            limit: seconds.
        """
        if not self.alive:
            return Answer([[]] * self.key.ranks, self._trouble or {0: "the ranks are gone"}, self._notes())
        for connection in self._sockets.values():
            connection.sendall(json.dumps([item, following]).encode() + b"\n")
        self.processor = 0.0
        reports = self._collect(limit)
        if self._trouble:
            notes = self._notes()
            self.kill()
            return Answer(reports, self._trouble, notes)
        if any(report["outcome"] == "failed" for of_rank in reports for report in of_rank):
            self.close()  # what one rank left undone must not meet the next test
        return Answer(reports, {}, processor=self.processor)

    def close(self):
        """Lets the ranks end by themselves; kills them if they do not."""
        for connection in self._sockets.values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=20)
        self.kill()

    def kill(self):
        """Ends the ranks at once."""
        self._end_processes()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end_processes(self):
        for pid in [*self._pids.values(), self._process.pid]:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if pid == self._process.pid else os.kill)(pid, signal.SIGKILL)
        self._process.wait()
        for connection in self._sockets.values():
            connection.close()
        self._sockets, self._pids = {}, {}

    def _start(self, mpirun, arguments) -> subprocess.Popen:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_INHERITED)}
        environment |= {
            "HOROVOD_SIGN_TEST_SOCKET": str(self._folder / "socket"),
            "HOROVOD_SIGN_TEST_FRAMEWORK": self.key.framework,
        }
        # A file for each rank's output, also for what a dying interpreter writes.
        to_file = f'exec "$@" >"{self._folder}/rank${{OMPI_COMM_WORLD_RANK:-$PMI_RANK}}" 2>&1'
        pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
        command = [*mpirun, "sh", "-c", to_file, "sh", *pytest]
        with open(self._folder / "mpirun", "wb") as output:
            return subprocess.Popen(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment, cwd=ROOT,
                start_new_session=True,
            )  # fmt: skip

    def _accept(self, server) -> dict[int, str]:
        """Waits until every rank has said that it is ready; what went wrong, by rank."""
        end = time.monotonic() + START
        while len(self._sockets) < self.key.ranks:
            server.settimeout(1)
            try:
                connection, _ = server.accept()
            except TimeoutError:
                if self._process.poll() is not None or time.monotonic() > end:
                    return self._not_ready(range(self.key.ranks), "did not start")
                continue
            hello = json.loads(connection.makefile("rb").readline())
            self._sockets[hello["rank"]], self._pids[hello["rank"]] = connection, hello["pid"]
        waiting = set(self._sockets)
        for rank, message in self._messages(end):
            if message is None:
                return self._not_ready([rank], "died while it started")
            waiting.discard(rank)
            self.processor += message["processor"]
            if not waiting:
                return {}
        return self._not_ready(waiting, f"was not ready after {START} s")

    def _not_ready(self, ranks, why) -> dict[int, str]:
        time.sleep(0.5)
        return {rank: f"{why}\n{self._log(rank)}" for rank in ranks}

    def _collect(self, limit) -> list[list[dict]]:
        """The reports of all ranks; sets `_trouble`."""
        reports = [[] for _ in range(self.key.ranks)]
        done, end = set(), time.monotonic() + limit
        while len(done) < self.key.ranks:
            batch = next(self._messages(end), None)
            if batch is None:
                self._stuck(done, reports, limit)
                break
            rank, message = batch
            if message is None:
                self._died(rank)
                break
            if "done" in message:
                done.add(rank)
                self.processor += message["processor"]
            else:
                reports[rank].append(message)
                if message["outcome"] == "failed":
                    end = min(end, time.monotonic() + GRACE)
        return reports

    def _messages(self, end):
        """Yields (rank, message) as they come, until the time `end`; None for the message of a rank that is gone."""
        with selectors.DefaultSelector() as selector:
            for rank, connection in self._sockets.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            while True:
                for rank in self._partial:
                    while b"\n" in self._partial[rank]:
                        line, self._partial[rank] = self._partial[rank].split(b"\n", 1)
                        yield rank, json.loads(line)
                left = end - time.monotonic()
                if left <= 0:
                    return
                for key, _ in selector.select(min(left, 1)):
                    try:
                        data = key.fileobj.recv(1 << 20)
                    except ConnectionResetError:
                        data = b""
                    if not data:
                        selector.unregister(key.fileobj)
                        yield key.data, None
                    self._partial[key.data] += data

    def _died(self, rank):
        time.sleep(1)  # for mpirun to say why
        self._trouble = {rank: f"died\n{self._log(rank)}"}

    def _stuck(self, done, reports, limit):
        """Asks the ranks that have not answered where they are."""
        waiting = [rank for rank in range(self.key.ranks) if rank not in done]
        marks = {rank: self._log_size(rank) for rank in waiting}
        for rank in waiting:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pids[rank], signal.SIGUSR1)
        time.sleep(1)
        failed = any(report["outcome"] == "failed" for of_rank in reports for report in of_rank)
        why = f"still waited {GRACE} s after the test had failed elsewhere" if failed else f"did not end in {limit:g} s"
        self._trouble = {rank: f"{why}\n{self._log(rank, marks[rank])}" for rank in waiting}

    def _log_size(self, rank) -> int:
        path = self._folder / f"rank{rank}"
        return path.stat().st_size if path.exists() else 0

    def _log(self, rank, start: int = 0) -> str:
        path = self._folder / f"rank{rank}"
        text = path.read_bytes()[start:].decode(errors="replace")[-LOG:] if path.exists() else ""
        return "\n".join(line for line in text.splitlines() if not any(frame in line for frame in _NOT_THE_TEST))

    def _notes(self) -> str:
        path = self._folder / "mpirun"
        return path.read_text(errors="replace")[-LOG:] if path.exists() else ""
