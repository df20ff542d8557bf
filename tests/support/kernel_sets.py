"""Tensors of the CPU in the hands of kernels that are for other devices, or of another kind."""

import pytest
from reference_planes import ReferencePlanes

from horovod_sign.tensors import kernels

KERNEL_SETS = ["native", "triton", "operations"]


def use_kernels(monkeypatch: pytest.MonkeyPatch, name: str):
    """All tensors are handled by one set of kernels from now on, or by "reference", which knows no bfloat16."""
    monkeypatch.setitem(kernels._SETS, "reference", ReferencePlanes)
    monkeypatch.setattr(kernels, "set_of", lambda device_type: name)
