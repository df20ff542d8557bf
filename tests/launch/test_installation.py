"""Set-up and installation: what is wrong is said, and nothing else is silently taken instead."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.fault("kernels")

ROOT = Path(__file__).resolve().parents[2]


def run(command, folder, **variables):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "PYTHONPATH")}
    done = subprocess.run(
        command, cwd=folder, env=environment | variables, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("there", [True, False], ids=["an environment is there", "none yet"])
def test_setup_takes_the_python_that_it_was_told_to_or_none(tmp_path, there):
    shutil.copytree(ROOT / "ci", tmp_path / "ci")
    if there:
        for tool, status in (("python", 0), ("pip", 1)):
            stand_in(tmp_path / ".venv" / "bin" / tool, f"exit {status}")
    python = tmp_path / "python3.10"
    stand_in(python, '[ "$1" = --version ] && echo Python 3.10.13; exit 1')
    status, output = run([tmp_path / "ci" / "setup.sh"], tmp_path, PYTHON=str(python))
    assert status != 0 and f"PYTHON={python} is not one (Python 3.10.13)" in output, output


def stand_in(path, does: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(0o755)


def copy_package(folder, kernels: bool):
    ignored = ("__pycache__",) if kernels else ("__pycache__", "*.so")
    shutil.copytree(ROOT / "horovod_sign", folder / "horovod_sign", ignore=shutil.ignore_patterns(*ignored))


def test_a_checkout_in_front_of_the_installed_package(tmp_path):
    """`python -m` from a checkout takes its package, whose kernels are not built where the install was not editable."""
    checkout, site = tmp_path / "checkout", tmp_path / "site"
    copy_package(checkout, kernels=False)
    status, output = run([sys.executable, "-S", "-c", "import horovod_sign"], checkout, PYTHONPATH=numpy_path())
    assert status != 0 and "kernels are not built" in output and "run `pip install -e .`" in output, output
    copy_package(site, kernels=True)
    path = os.pathsep.join([str(site), numpy_path()])
    status, output = run([sys.executable, "-S", "-c", "import horovod_sign"], checkout, PYTHONPATH=path)
    last = output.strip().splitlines()[-1]
    assert f"ImportError: Python takes horovod_sign from the checkout {checkout}, since" in last
    assert f"the package installed in {site} has them: run from another folder" in last
    status, output = run([sys.executable, "-S", "-c", "import horovod_sign"], tmp_path, PYTHONPATH=path)
    assert status == 0, output


def numpy_path() -> str:
    """Where NumPy is. Without `site` (-S) no editable install of this package is found."""
    import numpy

    return str(Path(numpy.__file__).parents[1])


def test_kernels_of_an_older_build_are_refused(tmp_path):
    """The number of the interface that the library was built with is compared when it is loaded."""
    copy_package(tmp_path, kernels=True)
    native = tmp_path / "horovod_sign" / "algebra" / "native.py"
    text = native.read_text()
    number = text.split("_ABI_VERSION = ")[1].split("\n")[0]
    native.write_text(text.replace(f"_ABI_VERSION = {number}", f"_ABI_VERSION = {int(number) + 1}"))
    status, output = run([sys.executable, "-c", "import horovod_sign"], tmp_path, PYTHONPATH=str(tmp_path))
    assert status != 0 and "built from other sources: run `pip install -e .` again" in output, output
