"""Set-up and installation: what is wrong is said, and nothing else is silently taken instead."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from horovod_sign import supported
from horovod_sign.building import horovod_cmake

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
    python = tmp_path / "python3.9"
    stand_in(python, '[ "$1" = --version ] && echo Python 3.9.18; exit 1')
    status, output = run([tmp_path / "ci" / "setup.sh"], tmp_path, PYTHON=str(python))
    assert status != 0 and f"PYTHON={python} is none (Python 3.9.18)" in output, output


def test_setup_makes_another_environment_for_another_python(tmp_path):
    """An environment of one Python is there, and another is asked for."""
    shutil.copytree(ROOT / "ci", tmp_path / "ci")
    (tmp_path / ".venv" / "lib").mkdir(parents=True)
    stand_in(tmp_path / ".venv" / "bin" / "python", '[ "$1" = -c ] && echo 3.11.7; exit 0')
    python = tmp_path / "python3.12"
    stand_in(python, 'case "$*" in *python_version*) echo 3.12.1 ;; esac; [ "$1" != -m ]')
    status, output = run([tmp_path / "ci" / "setup.sh"], tmp_path, PYTHON=str(python))
    assert status != 0 and f"'{python} -m venv' failed" in output and not (tmp_path / ".venv" / "lib").exists(), output


def test_setup_puts_in_horovod_again_when_its_pytorch_changes(tmp_path):
    """And does nothing twice that is as it was."""
    shutil.copytree(ROOT / "ci", tmp_path / "ci")
    for name in ("csrc/one.cpp", "setup.py", "pyproject.toml", "horovod_sign/building/horovod_cmake.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for tool in (".venv/bin/python", ".venv/bin/pip", "ci/fashion_mnist.sh", "ci/mpich.sh"):
        stand_in(tmp_path / tool, "exit 0")
    stand_in(tmp_path / "ci" / "horovod_wheel.sh", "echo a.whl")

    def put_in() -> bool:
        status, output = run([tmp_path / "ci" / "setup.sh"], tmp_path)
        assert status == 0, output
        return "Horovod into .venv" in output

    assert put_in() and not put_in()
    requirements = tmp_path / "ci" / "requirements.txt"
    requirements.write_text(re.sub(r"^torch==.*$", "torch==9.9.9", requirements.read_text(), flags=re.MULTILINE))
    assert put_in() and not put_in()


class Wheels:
    """ci/horovod_wheel.sh with a pip that writes a wheel in no time, and says how often."""

    def __init__(self, folder: Path):
        self.folder, self.cache, self.built = folder, folder / "cache", folder / "built"
        shutil.copytree(ROOT / "ci", folder / "ci")
        (folder / "horovod_sign" / "building").mkdir(parents=True)
        (folder / "horovod_sign" / "building" / "horovod_cmake.py").touch()
        stand_in(folder / "bin" / "python", "echo 3.11")
        writes = f'echo >>"{self.built}"; sleep ${{SLOW:-0}}; while [ "$1" != --wheel-dir ]; do shift; done'
        does = 'mkdir -p "$2"; echo wheel >"$2"/horovod.whl; grep -q sha256: "$4"'
        stand_in(folder / "bin" / "pip", f'[ "$1" = list ] && echo torch==2 && exit; {writes}; {does}')

    def command(self, **variables) -> tuple[list, dict]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return [self.folder / "ci" / "horovod_wheel.sh"], {
            "PATH": path,
            "HOROVOD_SIGN_CACHE": str(self.cache),
            **variables,
        }

    def run(self) -> str:
        command, variables = self.command()
        status, output = run(command, self.folder, **variables)
        assert status == 0, output
        return output

    def times_built(self) -> int:
        return len(self.built.read_text().splitlines())


@pytest.fixture
def wheels(tmp_path) -> Wheels:
    return Wheels(tmp_path)


def test_horovods_wheel_is_kept_and_verified(wheels):
    assert "building from its source" in wheels.run() and "found built" in wheels.run()
    assert wheels.times_built() == 1
    (wheel,) = wheels.cache.glob("horovod-*/*.whl")
    wheel.write_text("another")
    assert "not what was built there" in wheels.run() and wheel.read_text() == "wheel\n"
    (wheel.parent / "SHA256SUMS").unlink()  # as an older version left it
    wheels.run()
    assert wheels.times_built() == 3


def test_two_builds_of_one_wheel_and_one_that_is_interrupted(wheels):
    command, variables = wheels.command(SLOW="1")
    environment = os.environ | variables
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    paths, said = zip(*(each.communicate(timeout=60) for each in both), strict=True)
    assert paths[0] == paths[1] and paths[0].endswith("horovod.whl\n"), said
    assert wheels.times_built() == 1 and "waiting for that" in "".join(said), said

    shutil.rmtree(wheels.cache)
    killed = subprocess.Popen(command, env=environment | {"SLOW": "60"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end = time.monotonic() + 30
    while not list(wheels.cache.glob(".*.building-*/build.log")):
        assert killed.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    assert not list(wheels.cache.glob("horovod-*"))
    assert "building from its source" in wheels.run()
    assert len(list(wheels.cache.glob("horovod-*/*.whl"))) == 1 and not list(wheels.cache.glob(".*.building-*"))


class TestCMakeForHorovod:
    """horovod_cmake.py: what HOROVOD_CMAKE names."""

    @staticmethod
    def source(folder: Path, environment: dict, torch=(2, 13)) -> list[horovod_cmake.Edit]:
        """A folder that has what is to be edited, in one file of each name."""
        edits = horovod_cmake.edits(environment, torch)
        for name in {edit.file for edit in edits}:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("\n".join(dict.fromkeys(edit.old for edit in edits if edit.file == name)))
        return edits

    @pytest.mark.parametrize("environment", [{}, {"HOROVOD_GPU_OPERATIONS": "NCCL"}], ids=["CPUs", "GPUs"])
    def test_edits_once_and_only_what_it_knows(self, tmp_path, environment):
        edits = self.source(tmp_path, environment)
        for _ in range(2):
            assert [horovod_cmake.apply(edit, tmp_path) for edit in edits] == [None] * len(edits)
            assert all((tmp_path / edit.file).read_text().count(edit.new) >= 1 for edit in edits)
        cmake = (tmp_path / "CMakeLists.txt").read_text()
        assert cmake.count("set(CMAKE_CXX_STANDARD 17)") == 1
        assert cmake.count("add_library(horovod_common") == (0 if environment else 1)
        (tmp_path / "CMakeLists.txt").write_text("project(another)")
        assert "is not the one of Horovod 0.28.1" in horovod_cmake.apply(edits[0], tmp_path)

    def test_standard_of_pytorch(self):
        for torch, standard in (((2, 13), 17), ((2, 14), 20), ((0, 0), 17)):
            found = [e.new for e in horovod_cmake.edits({}, torch) if e.file == "horovod/torch/CMakeLists.txt"]
            assert f"set(CMAKE_CXX_STANDARD {standard})" in found

    def test_libraries_are_found_from_where_horovods_lie(self):
        packages, prefix = Path("/e/lib/python3.11/site-packages"), Path("/e")
        folders = [Path("/e/lib"), Path("/opt/mpi/lib"), packages / "torch" / "lib", Path("/e/lib")]
        found = horovod_cmake.run_path(folders, packages, prefix)
        assert found == ["$ORIGIN/../../../..", "/opt/mpi/lib", "$ORIGIN/../../torch/lib"]

    def test_cmake_is_run_with_what_it_needs(self, tmp_path, monkeypatch, capfd):
        for tool in ("cmake", "ninja"):
            stand_in(tmp_path / "bin" / tool, 'printf "%s\\n" "$@"')
        stand_in(tmp_path / "bin" / "mpicxx", "echo c++ -I/opt/mpi/include -L/opt/mpi/lib -lmpi")
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        monkeypatch.delenv("CMAKE_GENERATOR", raising=False)
        source = tmp_path / "source"
        self.source(source, {})
        (source / "horovod" / "__init__.py").write_text("__version__ = '0.28.1'\n")
        assert horovod_cmake.main([str(source), "-DCMAKE_BUILD_TYPE=RelWithDebInfo"]) == 0
        given = capfd.readouterr().out.splitlines()
        assert given[:4] == [str(source), "-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-G", "Ninja"]
        assert any(each.startswith("-DCMAKE_INSTALL_RPATH=/opt/mpi/lib") for each in given)
        unity = [
            each for gpus in (False, True) for each in horovod_cmake.arguments_to_configure(gpus) if "UNITY" in each
        ]
        assert unity == ["-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_UNITY_BUILD_BATCH_SIZE=10"]
        assert horovod_cmake.main(["--build", ".", "--config", "Release", "--", "-j8", "VERBOSE=1"]) == 0
        assert capfd.readouterr().out.splitlines()[:5] == ["--build", ".", "--config", "Release", "--parallel"]
        (source / "horovod" / "__init__.py").write_text("__version__ = '0.99'\n")
        assert horovod_cmake.main([str(source)]) == 0
        assert capfd.readouterr().out.splitlines()[1:] == [str(source)]


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


def test_what_is_too_old_is_refused_in_one_sentence():
    declared = dict(
        re.findall(r'^(torch|tensorflow) = \["\1>=([\d.]+)"\]$', (ROOT / "pyproject.toml").read_text(), re.M)
    )
    assert declared == {name: "{}.{}".format(*supported.OLDEST[name]) for name in ("torch", "tensorflow")}
    supported.refuse_older("ours", torch="2.4.0+cpu", tensorflow="2.16.1", horovod="0.28.1")
    supported.refuse_older("ours", torch="1+git", horovod="unknown")
    for name, version in (("torch", "2.3.1"), ("tensorflow", "2.15.0"), ("horovod", "0.27.0")):
        with pytest.raises(ImportError, match=rf"^ours needs {name} \d.* or newer, and {version} is installed: .*pip"):
            supported.refuse_older("ours", **{name: version})


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_an_adapter_refuses_an_older_horovod(framework):
    pytest.importorskip(f"horovod.{framework}")
    program = f"import horovod.{framework} as hvd; import horovod; horovod.__version__ = '0.27.0'; import horovod_sign"
    status, output = run([sys.executable, "-c", f"{program}.{framework}"], ROOT, TF_CPP_MIN_LOG_LEVEL="3")
    last = output.strip().splitlines()[-1]
    assert status and last.startswith(f"ImportError: horovod_sign.{framework} needs horovod 0.28 or newer"), output
