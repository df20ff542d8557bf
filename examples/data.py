"""The examples' images: Fashion-MNIST where its files are found, else scikit-learn's digits.

Fashion-MNIST is 60,000 + 10,000 images of 28 x 28 in ten classes, in four files named as in `FILES`.
"""

import gzip
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


class Images(NamedTuple):
    """A data set.

    Attributes:
        name: what it is, to be printed.
        train_x, test_x: float32 in [0, 1], shape (images, 28, 28).
        train_y, test_y: int64 classes 0 to 9.
    """

    name: str
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def load(data_dir: str | None = None) -> Images:
    """Fashion-MNIST from `data_dir`, from where ci/setup.sh puts it, or from Debian's package; else the digits.

    Raises:
        FileNotFoundError: data_dir is given and does not hold the four files.
    """
    folders = [Path(data_dir)] if data_dir else _usual_folders()
    for folder in folders:
        paths = [_find(folder, name) for name in FILES]
        if all(paths):
            train_x, train_y, test_x, test_y = (_read_idx(path) for path in paths)
            return Images("Fashion-MNIST", _scale(train_x), _classes(train_y), _scale(test_x), _classes(test_y))
    if data_dir:
        raise FileNotFoundError(f"{data_dir} does not hold {', '.join(f'{name}-ubyte.gz' for name in FILES)}")
    return _digits()


def _usual_folders() -> list[Path]:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    ours = Path(os.environ.get("HOROVOD_SIGN_CACHE") or Path(cache) / "horovod_sign")
    return [ours / "fashion-mnist", Path("/usr/share/datasets/fashion-mnist")]


def _find(folder: Path, name: str) -> Path | None:
    candidates = [folder / f"{name}-ubyte{end}" for end in (".gz", "")]
    return next((path for path in candidates if path.exists()), None)


def _read_idx(path: Path) -> np.ndarray:
    # The idx format: 2 zero bytes, the type (8: uint8), the number of dimensions, big-endian sizes, data.
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def _scale(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / 255


def _classes(labels: np.ndarray) -> np.ndarray:
    return labels.astype(np.int64)


def _digits() -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()  # 1,797 images of 8 x 8, values 0 to 16
    images = np.pad(digits.images.astype(np.float32).repeat(3, 1).repeat(3, 2) / 16, ((0, 0), (2, 2), (2, 2)))
    labels = _classes(digits.target)
    name = "scikit-learn's digits (Fashion-MNIST was not found: see --data-dir)"
    return Images(name, images[:1500], labels[:1500], images[1500:], labels[1500:])
