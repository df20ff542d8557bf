"""The oldest versions with which this package can work. `doctor/tested.py` has those that it was tested with."""

import re

from horovod_sign.building import again_line

OLDEST = {"torch": (2, 4), "tensorflow": (2, 16), "horovod": (0, 28)}


def refuse_older(ours: str, **versions: str) -> None:
    """Raises ImportError if something is too old.

    Args:
        ours: the module that is imported.
        versions: what it found, by name, as far as these say so.
    """
    for name, version in versions.items():
        oldest = OLDEST[name]
        numbers = tuple(int(number) for number in re.findall(r"\d+", version)[: len(oldest)])
        if len(numbers) == len(oldest) and numbers < oldest:
            needed = ".".join(map(str, oldest))
            remedy = again_line() if name == "horovod" else f"pip install '{name}>={needed}'"
            raise ImportError(f"{ours} needs {name} {needed} or newer, and {version} is installed: {remedy}")
