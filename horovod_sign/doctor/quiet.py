"""Imports without the messages of frameworks."""

import contextlib
import faulthandler
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Inside, nothing that is printed is seen, also by libraries: but a crash is told of where it was seen before."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    streams = [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
    for stream in streams:
        stream.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    told, crashes = faulthandler.is_enabled(), os.fdopen(os.dup(2), "w")
    faulthandler.enable(crashes)
    with tempfile.TemporaryFile() as nowhere:
        for number in kept:
            os.dup2(nowhere.fileno(), number)
        try:
            yield
        finally:
            for stream in streams:
                stream.flush()
            for number, original in kept.items():
                os.dup2(original, number)
                os.close(original)
            faulthandler.disable()
            crashes.close()
            if told:
                faulthandler.enable()
