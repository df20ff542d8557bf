"""What this package has been tested with, by major and minor number. `ci/requirements.txt` pins most of them."""

TESTED = {
    "python": ("3.11",),
    "horovod": ("0.28",),
    "torch": ("2.13",),
    "tensorflow": ("2.21",),
    "keras": ("3.15",),
    "mpi4py": ("4.1",),
}


def never_tested(versions: dict[str, str | None]) -> list[str]:
    """Those of `versions` that are not among the tested ones, and these: "torch 2.9.1 (tested: 2.13)"."""
    others = []
    for name, tested in TESTED.items():
        version = versions.get(name)
        if version is not None and ".".join(version.split(".")[:2]) not in tested:
            others.append(f"{name} {version} (tested: {', '.join(tested)})")
    return others
