"""What scripts do to parameters that are on a device: the same as on the CPU, bit for bit."""

import pytest
import torch
from device_scripts import (
    ON_ONE_DEVICE,
    Script,
    assert_the_same,
    by_mpi_itself,
    hierarchical,
    mixed,
    moved,
    one_bit_counts,
    plain,
    stock,
)
from kernel_sets import use_kernels
from ranks import RANK

from horovod_sign.tensors import planes

RANKS = (2,)  # an even number, where votes tie; how many there are is no affair of the device

SCRIPTS = [*ON_ONE_DEVICE, moved, mixed, one_bit_counts, by_mpi_itself, hierarchical, stock]


@pytest.mark.filterwarnings("ignore:.*is NaN in:RuntimeWarning")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_scripts(script, monkeypatch):
    assert_the_same(script, monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["SignSGD", "Signum", "SGD"])
def test_dtypes(kind, dtype, monkeypatch):
    assert_the_same(plain, monkeypatch, kind=kind, dtype=dtype)


def test_kernels_that_do_not_run_are_told_to_all(monkeypatch):
    """As where one host has no compiler."""

    def broken(tensor, abstain):
        raise OSError("Failed to find C compiler")

    use_kernels(monkeypatch, "operations")
    if RANK == 1:
        monkeypatch.setattr(planes, "pack", broken)
    with pytest.raises((RuntimeError, ValueError), match=r"packed on cpu \(OSError: Failed to find C compiler"):
        Script(torch.device("cpu"))
