"""Images for ResNet-20: CIFAR-10's standard binary folder, or Fashion-MNIST in a size that two cores can take."""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data

TRAIN, TEST = [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin"
RECORD = 1 + 3 * 32 * 32  # a class, then red, green and blue, row by row


class Images(NamedTuple):
    """A data set.

    Attributes:
        name: what it is, to be printed.
        train_x, test_x: float32, shape (images, height, width, channels), each channel with mean 0 and deviation 1 over
            the training set.
        train_y, test_y: int64 classes 0 to 9.
        augmented: whether images are cropped and flipped at random.
    """

    name: str
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    augmented: bool


def cifar10(folder: str) -> Images:
    """CIFAR-10 from the files of its binary version (data_batch_1.bin to 5, test_batch.bin).

    Raises:
        FileNotFoundError: one is missing.
        ValueError: one is no whole number of records, or has other classes than 0 to 9.
    """
    paths = {name: Path(folder) / name for name in [*TRAIN, TEST]}
    missing = [name for name, path in paths.items() if not path.exists()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)} of CIFAR-10's binary version")
    x, y = (np.concatenate(parts) for parts in zip(*(_read(paths[name]) for name in TRAIN), strict=True))
    return _scaled("CIFAR-10", x, y, *_read(paths[TEST]), augmented=True)


def _read(path: Path):
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if content.size % RECORD or not content.size:
        raise ValueError(f"{path} has {content.size:,} bytes, no whole number of records of {RECORD:,}")
    records = content.reshape(-1, RECORD)
    if records[:, 0].max() > 9:
        raise ValueError(f"{path} has a class {records[:, 0].max()}; CIFAR-10's are 0 to 9")
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0].astype(np.int64)


def small_fashion_mnist(train: int, test: int, data_dir: str | None = None) -> Images:
    """The first images of Fashion-MNIST, each 2 x 2 pixels averaged: 14 x 14."""
    images = data.load(data_dir)
    train_x, test_x = (
        x[:count].reshape(-1, 14, 2, 14, 2).mean((2, 4))[..., None]
        for x, count in ((images.train_x, train), (images.test_x, test))
    )
    name = f"{images.name}, 14 x 14, {len(train_x):,} images"
    return _scaled(name, train_x, images.train_y[:train], test_x, images.test_y[:test], augmented=False)


def _scaled(name, train_x, train_y, test_x, test_y, augmented):
    mean, deviation = (each.astype(np.float32) for each in (train_x.mean((0, 1, 2)), train_x.std((0, 1, 2))))
    train_x, test_x = (((x - mean) / deviation).astype(np.float32) for x in (train_x, test_x))
    return Images(name, train_x, train_y, test_x, test_y, augmented)


class Batches:
    """One rank's part of each batch: an epoch is a new order of all images, the same on all ranks.

    Args:
        images: of which the training set is taken.
        batch: images of all ranks together in a step.
        rank, ranks: of Horovod.
        seed: of orders, crops and flips.
    """

    def __init__(self, images: Images, batch: int, rank: int, ranks: int, seed: int):
        if batch % ranks:
            raise SystemExit(f"--batch-size {batch} is of all ranks together, and {ranks} ranks do not divide it")
        self._images, self._batch, self._rank, self._share, self._seed = images, batch, rank, batch // ranks, seed

    def __len__(self):
        return len(self._images.train_x) // self._batch

    def epoch(self, number: int):
        """(images, classes) of each step."""
        order = np.random.default_rng([self._seed, number]).permutation(len(self._images.train_x))
        random = np.random.default_rng([self._seed, number, self._rank])
        for step in range(len(self)):
            chosen = order[step * self._batch + self._rank * self._share :][: self._share]
            x = self._images.train_x[chosen]
            yield (augment(x, random) if self._images.augmented else x), self._images.train_y[chosen]


def augment(x: np.ndarray, random: np.random.Generator, border: int = 4) -> np.ndarray:
    """Each image moved by up to `border` pixels either way, with zeros around it, and mirrored or not."""
    count, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    rows, columns = random.integers(0, 2 * border + 1, (2, count))
    cropped = windows[np.arange(count), rows, columns].transpose(0, 2, 3, 1)
    mirrored = random.random(count) < 0.5
    return np.ascontiguousarray(np.where(mirrored[:, None, None, None], cropped[:, :, ::-1], cropped))
