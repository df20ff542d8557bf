"""Makes each mistake of tests/mutants in a copy of the checkout and runs the tests that must notice: ci/mutants.sh.

A mutant is a patch (`git diff -U1`), with comments before it:

    # what: the sum of the ballots is compared with the size, not with the voters
    # tests: tests/core/test_counts_fields.py::test_joined_ranks_abstain
    # build: yes                                  only if it changes csrc/: the kernels are built again
    # survives: why no user can see it            only if no test can notice

It is killed if the tests fail, and survives if they pass, or if none runs.
"""

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "mutants"
SECONDS = 400  # for the tests of one mutant


class Mutant(NamedTuple):
    """One patch and its comments."""

    name: str
    patch: str
    what: str
    tests: str
    build: bool
    survives: str


class Verdict(NamedTuple):
    """What became of a mutant: "killed", "survived", "survives" (as its comment says) or "broken", and details."""

    mutant: Mutant
    outcome: str
    seconds: float
    detail: str = ""


def read(path: Path) -> Mutant:
    """A mutant from its file."""
    text = path.read_text()
    comments = dict(re.findall(r"^# (\w+): (.*)$", text, re.MULTILINE))
    name = str(path.relative_to(HERE).with_suffix(""))
    get = comments.get
    return Mutant(name, text, get("what", ""), get("tests", ""), get("build") == "yes", get("survives", ""))


def apply(mutant: Mutant, folder: Path, *options: str) -> str:
    """Patches the copy in `folder`; what patch said if it could not, else nothing."""
    command = ["patch", "-p1", "--force", "--no-backup-if-mismatch", "--reject-file=-", *options]
    done = subprocess.run(command, input=mutant.patch, cwd=folder, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def copy(folder: Path) -> Path:
    """A copy of the checkout: what git knows or does not ignore, the built kernels, and the environment by a link."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    kernels = [str(path.relative_to(ROOT)) for path in (ROOT / "horovod_sign" / "algebra").glob("*.so")]
    for name in [*filter(None, listed.stdout.decode().split("\0")), *kernels]:
        source, target = ROOT / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    for environment in (".venv", ".venv-mpich"):
        (folder / environment).symlink_to((ROOT / environment).resolve())
    return folder


def try_one(mutant: Mutant) -> Verdict:
    """Makes the mistake in a copy and runs its tests there."""
    start = time.monotonic()
    if mutant.survives:
        return Verdict(mutant, "survives", 0.0, mutant.survives)
    if not mutant.tests or not mutant.what:
        return Verdict(mutant, "broken", 0.0, "lacks '# what:' or '# tests:'")
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = copy(Path(name))
        said = apply(mutant, folder) or (_build(folder) if mutant.build else "")
        outcome, detail = ("broken", said) if said else _run(mutant, folder)
    return Verdict(mutant, outcome, time.monotonic() - start, detail)


def _build(folder: Path) -> str:
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "--force"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout[-2000:] + done.stderr[-2000:]


def _run(mutant: Mutant, folder: Path) -> tuple[str, str]:
    # The copy's package, not the one that is installed.
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.tests.split()]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "killed", f"took more than {SECONDS} s"
    last = done.stdout.strip().splitlines()[-1:] or [""]
    return {0: "survived", 1: "killed"}.get(done.returncode, "broken"), last[0]


def main() -> int:
    """Tries the mutants; the exit status is 1 if one survived, does not apply, or its tests do not run."""
    parser = argparse.ArgumentParser(description=__doc__ and __doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of the paths of those to try; default: all")
    parser.add_argument("--check", action="store_true", help="only whether each still applies")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default: 2)")
    arguments = parser.parse_args()
    mutants = [read(path) for path in sorted(HERE.rglob("*.patch"))]
    mutants = [m for m in mutants if not arguments.names or any(name in m.name for name in arguments.names)]
    if arguments.check:
        stale = {m.name: said for m in mutants if (said := apply(m, ROOT, "--dry-run"))}
        for name, said in stale.items():
            print(f"{name}: does not apply\n{said}")
        print(f"{len(mutants) - len(stale)} of {len(mutants)} mutants apply")
        return int(bool(stale))
    bad = []
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for number, verdict in enumerate(pool.map(try_one, mutants), 1):
            if verdict.outcome in ("survived", "broken"):
                bad.append(verdict)
            row = f"{number:3d}/{len(mutants)} {verdict.outcome:9s}{verdict.seconds:5.0f} s  {verdict.mutant.name}"
            print(f"{row}: {verdict.mutant.what}\n{'':20s}{verdict.detail}", flush=True)
    print(f"{len(mutants)} mutants, {len(bad)} that are not noticed or do not apply")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
