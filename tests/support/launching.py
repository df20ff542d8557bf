"""Starts a program that starts others, with a time limit after which all of them are gone."""

import os
import signal
import subprocess

NOT_STARTED = "PMIx server's listener thread failed to start"  # Open MPI's, on a machine that is very busy


def launch(command, seconds: int, **options) -> tuple[int | None, str]:
    """Runs a command, once more if mpirun itself did not start.

    Args: as for `_launch_once`.
    """
    status, output = _launch_once(command, seconds, **options)
    return _launch_once(command, seconds, **options) if NOT_STARTED in output else (status, output)


def _launch_once(command, seconds: int, **options) -> tuple[int | None, str]:
    """Runs a command in a process group of its own.

    Args:
        command: as for subprocess.
        seconds: after which the whole group is killed.
        **options: of subprocess.Popen.

    Returns:
        its exit status, None if it took too long, and what it and its children printed.
    """
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, **options
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return None, f"{output}\n(killed after {seconds} s)"
    return process.returncode, output
