"""A folder of CIFAR-10's binary format with few images, whose pixels hang on their class."""

from pathlib import Path

import numpy as np


def write_cifar10(folder: Path, images: int = 16) -> Path:
    """Writes data_batch_1.bin to 5 and test_batch.bin with so many images each, the same on all ranks."""
    random = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        classes = random.integers(0, 10, (images, 1))
        pixels = np.clip(random.normal(25 * classes, 30, (images, 3072)), 0, 255)
        (folder / name).write_bytes(np.concatenate([classes, pixels], 1).astype(np.uint8).tobytes())
    return folder
