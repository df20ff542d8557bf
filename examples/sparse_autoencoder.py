"""What the sparse autoencoder examples share, whatever the framework: arguments, patches of images, figures.

A sparse autoencoder explains each input by at most k of many features (Gao et al. 2024, arXiv 2406.04093). Those that
interpret language models are often trained by sign-based steps, as in EleutherAI's sparsify; inputs here are small
patches of images, so that it takes a minute.
"""

import argparse

import data
import devices
import numpy as np

PATCH = 8  # pixels a side
PER_IMAGE = 4

# From grids of factors of 2, on 2 ranks, 15,000 images, 4 epochs: twice as much explains a little more (of the variance
# 8.5, 9.0 and 9.1 % are left, not 9.4, 9.8 and 10.8), by fewer features (179, 173 and 244 are dead, not 22, 20 and 89).
LEARNING_RATES = {"float32-adam": 0.004, "adam": 0.004, "signum": 0.001}


def parse_arguments(doc: str | None, argv: list[str] | None = None):
    """The arguments of the command line, or `argv`; the first line of `doc` says what the program does."""
    parser = argparse.ArgumentParser(description=doc and doc.splitlines()[0])
    parser.add_argument(
        "--optimizer",
        choices=LEARNING_RATES,
        default="signum",
        help="signum: steps by the vote; adam: Adam takes the votes for its gradients; float32-adam: Adam on Horovod's"
        " average, to compare with; default: signum",
    )
    parser.add_argument("--lr", type=float, help=f"learning rate at the start; default: {LEARNING_RATES}")
    parser.add_argument("--momentum", type=float, default=0.9, help="of signum; default: 0.9")
    parser.add_argument("--features", type=int, default=512, help="of the autoencoder; default: 512")
    parser.add_argument("--k", type=int, default=8, help="features that may explain a patch; default: 8")
    parser.add_argument("--epochs", type=int, default=4, help="passes over all patches; default: 4")
    parser.add_argument("--batch-size", type=int, default=128, help="patches in a step of each rank; default: 128")
    parser.add_argument("--seed", type=int, default=42, help="of initial weights and of patches; default: 42")
    parser.add_argument("--images", type=int, help="how many to cut patches from; default: all")
    parser.add_argument(
        "--data-dir", help="folder with Fashion-MNIST's four *-ubyte.gz files; default: where ci/setup.sh puts them"
    )
    parser.add_argument(
        "--checkpoint", help="file to write after each epoch, with the momenta of all ranks; may have {epoch} in it"
    )
    parser.add_argument("--resume", help="checkpoint to go on from, on any number of ranks")
    devices.add_argument(parser)
    parser.add_argument("--log-interval", type=int, default=100, help="steps between lines of progress; default: 100")
    args = parser.parse_args(argv)
    args.lr = args.lr or LEARNING_RATES[args.optimizer]
    return args


def load(args) -> tuple[str, np.ndarray, np.ndarray]:
    """(name of the data, training patches, test patches), each float32 of shape (patches, 64)."""
    images = data.load(args.data_dir)
    random = np.random.default_rng(args.seed)
    train, test = (_patches(x[: args.images], random) for x in (images.train_x, images.test_x))
    scale = train.std()
    return images.name, train / scale, test / scale


def _patches(images: np.ndarray, random) -> np.ndarray:
    """Patches at random places of each image, less their mean brightness, without those that are blank."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (PATCH, PATCH), (1, 2))
    image = np.arange(len(images)).repeat(PER_IMAGE)
    row, column = random.integers(0, windows.shape[1], (2, len(image)))
    patches = windows[image, row, column].reshape(len(image), PATCH * PATCH)
    patches = patches - patches.mean(axis=1, keepdims=True)
    return patches[patches.std(axis=1) > 0.02]


def describe(epoch: int, unexplained: float, dead: int, features: int, seconds: float) -> str:
    """The line that is printed after an epoch."""
    figures = f"variance unexplained {100 * unexplained:.2f} %  dead features {dead} of {features}"
    return f"epoch {epoch}  {figures}  ({seconds:.0f} s)"
