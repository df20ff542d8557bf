"""Tensors of the CPU in the hands of the kernels that are for other devices."""

import pytest

from horovod_sign.tensors import buckets, devices, planes
from horovod_sign.tensors.devices import staging

KERNEL_SETS = ["native", "triton", "operations"]


def use_kernels(monkeypatch: pytest.MonkeyPatch, name: str):
    """All tensors are handled by one set of kernels from now on: "native", or one of `devices`."""
    for module in (buckets, planes):
        monkeypatch.setattr(module, "has_kernels", lambda tensor: name == "native")
    if name != "native":
        kernels = devices.load(name)
        monkeypatch.setattr(staging, "kernels_of", lambda device_type: kernels)
