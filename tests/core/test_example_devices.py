"""Which GPU a rank of the examples takes."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

PATH = Path(__file__).resolve().parents[2] / "examples" / "devices.py"


@pytest.fixture(scope="module")
def pinned():
    spec = importlib.util.spec_from_file_location("example_devices", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pinned


@pytest.mark.parametrize("cuda", [None, True])
def test_each_rank_of_a_host_takes_its_gpu(pinned, cuda):
    args = SimpleNamespace(cuda=cuda)
    assert [pinned(args, ["a", "b"], rank) for rank in range(4)] == ["a", "b", "a", "b"]
    assert [pinned(args, range(1), rank) for rank in range(2)] == [0, 0]  # a launcher shows each rank its own alone


def test_without_gpus_or_by_no_cuda_the_cpu_is_used(pinned):
    assert pinned(SimpleNamespace(cuda=None), range(0), 3) is None
    assert pinned(SimpleNamespace(cuda=False), range(4), 3) is None


def test_cuda_without_gpus_stops(pinned):
    with pytest.raises(SystemExit, match="finds no GPU"):
        pinned(SimpleNamespace(cuda=True), [], 0)
