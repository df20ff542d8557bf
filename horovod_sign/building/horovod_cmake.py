#!/usr/bin/env python3
"""CMake for Horovod 0.28.1: makes its source fit today's compilers and frameworks, and then runs `cmake`.

    HOROVOD_CMAKE=horovod-sign-cmake HOROVOD_WITH_MPI=1 HOROVOD_WITH_PYTORCH=1 \
        pip install --no-build-isolation --no-cache-dir horovod==0.28.1

Horovod's `setup.py` takes the name of its CMake from HOROVOD_CMAKE, so nothing is to be edited by hand: what
is edited is the copy that pip has unpacked for this build. Horovod's last release, of June 2023, predates what it is
built for here:

- the C++ standard that the headers of PyTorch and TensorFlow need, also for CUDA, and headers that GCC 13 wants named;
- one opt-in file (TensorFlow's XLA ops) whose headers TensorFlow has moved;
- how a CUDA stream is had of TensorFlow's: by a function of its interface, since the one declared is exported no more;
- a PyTorch built for CUDA, where no GPU operations are asked for: Horovod would want CUDA's toolkit for it.

And it compiles less: without debugging information, by Ninja where that is installed, what PyTorch's and TensorFlow's
libraries have in common once, several files at a time, of PyTorch's headers those that are needed; and PyTorch is asked
once. (Builds for GPUs have of that what could be tried for them.) The libraries find those of the same Python
environment (an Open MPI from PyPI) relative to themselves, so that a wheel works in another environment too.

This file stands alone, and can be run without being installed.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

VERSION = "0.28.1"
OUTPUTS = ("horovod/torch", "horovod/tensorflow")  # where its libraries are in site-packages


class Edit(NamedTuple):
    """One change of the source: `old`, which is there, becomes `new`."""

    file: str
    old: str
    new: str


def main(arguments: list[str] | None = None) -> int:
    """The exit status of `cmake`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    cmake = shutil.which("cmake")
    if cmake is None:
        return _stop("there is no `cmake` on PATH: pip install cmake, or a package of your system")
    if "--build" in arguments:
        return subprocess.call([cmake, *arguments_to_build(arguments)])
    source = next((Path(each) for each in arguments if not each.startswith("-")), None)
    if source is None or not (source / "CMakeLists.txt").is_file():
        return subprocess.call([cmake, *arguments])
    if version_of(source) != VERSION:
        print(f"horovod-sign-cmake: this is no Horovod {VERSION}, and is built as it is", flush=True)
        return subprocess.call([cmake, *arguments])
    gpus = wants_gpus(os.environ)
    for edit in edits(os.environ, _torch()):
        if (wrong := apply(edit, source)) is not None:
            return _stop(wrong)
    return subprocess.call([cmake, *arguments, *arguments_to_configure(gpus)])


def version_of(source: Path) -> str:
    """The version of the Horovod in a folder, "" if there is none."""
    try:
        found = re.search(r"__version__ = '([^']*)'", (source / "horovod" / "__init__.py").read_text())
    except OSError:
        return ""
    return found[1] if found else ""


def wants_gpus(environment: Mapping[str, str]) -> bool:
    """Whether Horovod is asked for operations on GPUs."""
    return any(name.startswith("HOROVOD_GPU") and value for name, value in environment.items())


def edits(environment: Mapping[str, str], torch: tuple[int, int]) -> list[Edit]:
    """What is to be changed in the source of Horovod 0.28.1, for one build.

    Args:
        environment: the variables by which Horovod is told what to build.
        torch: major and minor version of PyTorch, (0, 0) if there is none.
    """
    of_torch = 20 if torch >= (2, 14) else 17
    found = [
        Edit("CMakeLists.txt", "set(CMAKE_CXX_STANDARD 14)", "set(CMAKE_CXX_STANDARD 17)"),
        # Both of its copies of Gloo are then the same, and one serves both frameworks.
        Edit("CMakeLists.txt", "if(HAVE_GLOO AND (DEFINED Tensorflow_CXX17 AND Tensorflow_CXX17))", "if(FALSE)"),
        Edit("horovod/tensorflow/CMakeLists.txt", "compatible17_gloo", "gloo"),
        Edit("horovod/torch/CMakeLists.txt", "set(CMAKE_CXX_STANDARD 14)", f"set(CMAKE_CXX_STANDARD {of_torch})"),
        Edit("horovod/torch/CMakeLists.txt", *_PYTHON_HEADERS),
        Edit("horovod/common/ops/cuda/CMakeLists.txt", "set(CMAKE_CUDA_STANDARD 11)", "set(CMAKE_CUDA_STANDARD 17)"),
        Edit("horovod/tensorflow/CMakeLists.txt", _XLA, "# without xla_mpi_ops.cc\n"),
        Edit("horovod/tensorflow/mpi_ops.cc", "// Forward declaration of AsGpuStreamValue\n", f"{_STREAM_HEADER}\n"),
        Edit("horovod/tensorflow/mpi_ops.cc", "GpuStreamHandle AsGpuStreamValue(Stream* stream);\n", _STREAM),
    ]
    if wants_gpus(environment):
        return found
    found += [
        Edit("CMakeLists.txt", "include(CheckLanguage)\n", "if(FALSE)\ninclude(CheckLanguage)\n"),
        Edit("CMakeLists.txt", "macro(ADD_CUDA)\n", "endif()\nmacro(ADD_CUDA)\n"),
        Edit("cmake/Modules/FindPytorch.cmake", "# Try to find Pytorch\n", _PYTORCH),
        Edit("CMakeLists.txt", "#MXNet\n", _COMMON),
        Edit("third_party/gloo/gloo/CMakeLists.txt", "add_library(gloo ", _APART + "add_library(gloo "),
        Edit("horovod/torch/adapter_v2.h", _ALL_HEADERS, "#include <torch/types.h>\n"),
        Edit("horovod/torch/mpi_ops_v2.cc", _ALL_HEADERS, _BINDING_HEADERS),
    ]
    for framework, library in (
        ("torch", "add_library(${PYTORCH_TARGET_LIB} SHARED "),
        ("tensorflow", "add_library(${TF_TARGET_LIB} SHARED "),
    ):
        found.append(Edit(f"horovod/{framework}/CMakeLists.txt", library + "${SOURCES} ", library + _COMMON_OBJECTS))
    return found


_PYTHON_HEADERS = (
    "from distutils.sysconfig import get_python_inc; print(get_python_inc())",
    "import sysconfig; print(sysconfig.get_path('include'))",
)
_XLA = 'list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc")\n'
_STREAM_HEADER = '#include "tensorflow/compiler/xla/stream_executor/stream.h"'
# The declaration becomes the definition, after the header of the class that it takes.
_STREAM = """inline GpuStreamHandle AsGpuStreamValue(Stream* stream) {
  return static_cast<GpuStreamHandle>(stream->platform_specific_handle().stream);
}
"""
# In place of what follows, which starts Python, and imports PyTorch, seven times, and asks for what CUDA it is built.
_PYTORCH = """execute_process(COMMAND ${PY_EXE} -c "
import sys
answer, sys.stdout = sys.stdout, sys.stderr  # which PyTorch may write to
import torch
from torch.utils.cpp_extension import CppExtension
it = CppExtension('', [])
abi = str(int(torch.compiled_with_cxx11_abi()))
print('set(Pytorch_VERSION', torch.__version__, ')', file=answer)
print('set(Pytorch_CXX11', abi, ')', file=answer)
print('set(Pytorch_COMPILE_FLAGS -D_GLIBCXX_USE_CXX11_ABI=' + abi, ')', file=answer)
for name, values in ('INCLUDE_DIRS', it.include_dirs), ('LIBRARY_DIRS', it.library_dirs), ('NAMES', it.libraries):
    print('set(Pytorch_' + name, *('[==[' + each + ']==]' for each in values), ')', file=answer)
"                OUTPUT_FILE "${CMAKE_BINARY_DIR}/pytorch.cmake" RESULT_VARIABLE _failed)
if(NOT _failed)
    include("${CMAKE_BINARY_DIR}/pytorch.cmake")
endif()
foreach(_LIB IN LISTS Pytorch_NAMES)
    find_library(FOUND_LIB_${_LIB} NAMES ${_LIB} HINTS ${Pytorch_LIBRARY_DIRS})
    list(APPEND Pytorch_LIBRARIES ${FOUND_LIB_${_LIB}})
endforeach()
set(Pytorch_CUDA FALSE)
set(Pytorch_ROCM FALSE)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Pytorch REQUIRED_VARS Pytorch_VERSION VERSION_VAR Pytorch_VERSION)
return()
"""
_ALL_HEADERS = "#include <torch/extension.h>\n#include <torch/torch.h>\n"
_BINDING_HEADERS = "#include <torch/types.h>\n#include <torch/csrc/utils/pybind.h>\n"
# Has a name that another file has too, of something else.
_APART = """set_source_files_properties(
  ${CMAKE_CURRENT_SOURCE_DIR}/allreduce_local.cc PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
"""
# After TensorFlow, whose Eigen and FlatBuffers are then the ones to include, as they are for its own library.
_COMMON_OBJECTS = "$<TARGET_OBJECTS:horovod_common> "
_COMMON = """add_library(horovod_common OBJECT ${SOURCES})
target_include_directories(horovod_common PRIVATE "${EIGEN_INCLUDE_PATH}" "${FLATBUFFERS_INCLUDE_PATH}")
#MXNet
"""


def apply(edit: Edit, source: Path) -> str | None:
    """Makes a change, unless it is made; what is wrong if it cannot be made."""
    path = source / edit.file
    text = path.read_text()
    if edit.old in text and not (edit.old in edit.new and edit.new in text):
        path.write_text(text.replace(edit.old, edit.new))
    elif edit.new not in text:
        return f"{edit.file} is not the one of Horovod {VERSION}: it has no {edit.old.strip()!r}"
    return None


def arguments_to_configure(gpus: bool) -> list[str]:
    """What is given to CMake besides Horovod's arguments, when it configures."""
    ninja = shutil.which("ninja") and "CMAKE_GENERATOR" not in os.environ
    given = [
        *(["-G", "Ninja"] if ninja else []),
        "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O2 -DNDEBUG",  # Horovod makes that -O3
        "-DCMAKE_POLICY_VERSION_MINIMUM=3.5",  # or CMake 4 refuses its Gloo
        f"-DCMAKE_CXX_FLAGS={' '.join(filter(None, [os.environ.get('CXXFLAGS'), '-include cstdint']))}",
    ]
    if not gpus:
        given += ["-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_UNITY_BUILD_BATCH_SIZE=10"]  # as many files at a time
    folders = run_path(_linked_folders(), Path(sysconfig.get_path("platlib")), Path(sys.prefix))
    if folders:
        given += ["-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON", f"-DCMAKE_INSTALL_RPATH={';'.join(folders)}"]
        given += ["-DCMAKE_INSTALL_RPATH_USE_LINK_PATH=ON"] if gpus else []  # NCCL's and CUDA's
    return given


def arguments_to_build(arguments: list[str]) -> list[str]:
    """Horovod's arguments, without those that only `make` knows."""
    kept = arguments[: arguments.index("--")] if "--" in arguments else list(arguments)
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(len(os.sched_getaffinity(0)))
    return [*kept, "--parallel", jobs]


def run_path(folders: list[Path], packages: Path, prefix: Path) -> list[str]:
    """Where Horovod's libraries look for others, from where they will lie.

    Args:
        folders: those that have the libraries.
        packages: the environment's site-packages.
        prefix: the environment. Folders outside of it are named as they are.
    """
    found = []
    for folder in folders:
        if folder.is_relative_to(prefix):
            # As deep as each other, so that one path is right for both.
            found.append("$ORIGIN/" + os.path.relpath(folder, packages / OUTPUTS[0]))
        else:
            found.append(str(folder))
    return list(dict.fromkeys(found))


def _linked_folders() -> list[Path]:
    """Where the libraries of MPI and of PyTorch are; none if MPI's compiler cannot be asked."""
    if os.environ.get("HOROVOD_WITHOUT_MPI") == "1":
        return _torch_libraries()
    compiler = shutil.which("mpicxx")
    if compiler is None:
        return []
    shown = subprocess.run([compiler, "-show"], capture_output=True, text=True, check=False)
    if shown.returncode:
        return []
    named = [word[2:] for word in shlex.split(shown.stdout) if word.startswith("-L")]
    return [Path(folder).absolute() for folder in named] + _torch_libraries()


def _torch_libraries() -> list[Path]:
    libraries = Path(sysconfig.get_path("platlib")) / "torch" / "lib"
    return [libraries] if libraries.is_dir() else []


def _torch() -> tuple[int, int]:
    """The version of PyTorch, (0, 0) if there is none."""
    from importlib import metadata

    try:
        numbers = re.findall(r"\d+", metadata.version("torch"))
    except metadata.PackageNotFoundError:
        return 0, 0
    return int(numbers[0]), int(numbers[1])


def _stop(why: str) -> int:
    print(f"horovod-sign-cmake: {why}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
