"""What helps to build Horovod for today's frameworks, and the lines to say where one is missing or is not right."""

_BUILD = "pip install --no-build-isolation --no-cache-dir"


def first_line(*options: str) -> str:
    """The commands that build and install Horovod where there is none: first_line("HOROVOD_WITH_PYTORCH=1")."""
    return f"pip install 'horovod-sign[horovod-build]', then {_with(options)} {_BUILD} horovod==0.28.1"


def again_line(*options: str) -> str:
    """The command that builds and installs Horovod in place of the one that is there."""
    return f"{_with(options)} {_BUILD} --force-reinstall --no-deps horovod==0.28.1"


def _with(options: tuple[str, ...]) -> str:
    return " ".join(["HOROVOD_CMAKE=horovod-sign-cmake", *options])
