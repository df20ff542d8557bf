"""Builds the kernels in csrc/ as horovod_sign/algebra/_kernels.so; all else is in pyproject.toml.

The library has no Python in it: horovod_sign/algebra/native.py loads it with ctypes, so one build and one wheel serve
every Python. Each instruction set's file is compiled for that set, and the library picks one when it is loaded, so one
build runs on every processor of its family.
"""

import glob
import shutil
import sysconfig

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# No -ffast-math and no -march=native: results must be the same bits on every machine. -ffp-contract=off keeps the
# compiler from fusing a multiplication with an addition, which would skip a rounding.
COMMON = [
    "-O3",
    "-std=c++17",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-exceptions",
    "-fno-rtti",
    "-fvisibility=hidden",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-unknown-warning-option",
    "-Wno-maybe-uninitialized",
    "-g0",
]
X86 = {
    "isa_avx2.cpp": ["-mavx2", "-mf16c", "-mpopcnt"],
    "isa_avx512.cpp": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mf16c", "-mpopcnt"],
}


def flags(source):
    """The compiler's flags for one source file."""
    on_x86 = sysconfig.get_platform().endswith(("x86_64", "amd64"))  # not this machine's, where it compiles for another
    return COMMON + (X86.get(source.rpartition("/")[2], []) if on_x86 else [])


class BuildKernels(build_ext):
    """build_ext, with flags of their own for the files that need them."""

    def build_extension(self, ext):
        """Compiles and links the library, or stops with one sentence saying what is missing."""
        found = self.compiler.compiler_type == "unix" and shutil.which(self.compiler.compiler_cxx[0])
        if not found:
            raise CompileError(
                "horovod_sign needs a C++17 compiler (GCC or Clang) to build its kernels, and none was found: install "
                "one (for example `apt-get install g++`) or name it in the environment variable CXX."
            )
        objects = []
        for source in ext.sources:
            objects += self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                extra_postargs=flags(source),
                depends=ext.depends,
            )
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            target_lang="c++",
            build_temp=self.build_temp,
            extra_postargs=["-pthread", "-static-libgcc", "-static-libstdc++"],  # it needs nothing but the C library
        )

    def get_ext_filename(self, name):
        """Without the tag of one Python."""
        return name.replace(".", "/") + ".so"

    def get_export_symbols(self, ext):
        """The library exports no Python module's init function."""
        return []


class OneForEveryPython(bdist_wheel):
    """A wheel for one platform, and for any Python 3."""

    def get_tag(self):
        """(Python, ABI, platform)."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "horovod_sign.algebra._kernels",
            sources=sorted(glob.glob("csrc/*.cpp")),
            depends=sorted(glob.glob("csrc/*.h")),
            language="c++",
        )
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": OneForEveryPython},
)
