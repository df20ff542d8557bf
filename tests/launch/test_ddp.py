"""The example of DistributedDataParallel, started as users do, where there is no Horovod."""

import gzip
import os
import socket
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from launching import launch

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "pytorch" / "pytorch_ddp_fashion_mnist.py"
ABSENT = ("horovod", "mpi4py", "tensorflow")


@pytest.fixture
def folder(tmp_path):
    """A few images in Fashion-MNIST's format, and packages that say that they are not installed."""
    random = np.random.default_rng(0)
    for part, n in (("train", 512), ("t10k", 64)):
        labels = random.integers(0, 10, n, np.uint8)
        images = np.zeros((n, 28, 28), np.uint8)
        images[np.arange(n), labels] = 255  # a bright row tells the class
        for name, array in ((f"{part}-images-idx3", images), (f"{part}-labels-idx1", labels)):
            header = struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape)
            (tmp_path / f"{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes(), 1))
    for package in ABSENT:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"raise ImportError('no {package} here')\n")
    return tmp_path


@pytest.mark.fault("ddp", "torch")
@pytest.mark.parametrize("launcher", ["torchrun", "mpirun"])
def test_the_example_learns(launcher, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    mpirun = [ROOT / "ci" / "run", "2", sys.executable]
    arguments = [EXAMPLE, "--data-dir", folder, "--epochs", "6", "--lr", "0.003"]
    variables = {"PYTHONPATH": f"{folder}:{ROOT}", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = (torchrun if launcher == "torchrun" else mpirun) + arguments
    status, output = launch(command, 100, env={**os.environ, **variables}, cwd=ROOT)
    assert status == 0, output
    assert "signum on Fashion-MNIST: 512 images, 2 ranks" in output, output
    assert "epoch 6  test accuracy 100.00 %" in output, output
    assert "x less than float32's" in output, output
