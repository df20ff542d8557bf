"""What the PyTorch and the Keras ResNet-20 share: the paper's settings, the log, what is printed.

The network is the one for CIFAR-10 of He et al. 2015 (arXiv 1512.03385, section 4.2): 3 stages of 3 blocks, 16, 32 and
64 channels, shortcuts without parameters (option A): 269,722 parameters. The settings of signSGD and Signum are from
Bernstein et al. 2018 (arXiv 1802.04434) and 2019 (1810.05291); of SGD those of He et al.; of Adam those of signSGD.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import devices
import images
from traffic import float32_bytes


class Settings(NamedTuple):
    """Of one optimizer: learning rate at the start, momentum, weight decay (decoupled, but of SGD in PyTorch)."""

    lr: float
    momentum: float
    weight_decay: float


SETTINGS = {
    "sgd": Settings(0.1, 0.9, 1e-4),
    "adam": Settings(1e-3, 0.0, 0.1),
    "signsgd": Settings(1e-3, 0.0, 0.1),
    "signum": Settings(1e-3, 0.9, 0.1),
}
VOTES = ("signsgd", "signum")


def parse_arguments(doc: str | None, argv=None):
    """The arguments of the command line; the first line of `doc` says what the program does."""
    parser = argparse.ArgumentParser(description=doc and doc.splitlines()[0])
    parser.add_argument("--optimizer", choices=SETTINGS, default="signum", help="default: signum")
    parser.add_argument("--cifar", help="folder with CIFAR-10's binary files; default: Fashion-MNIST, 14 x 14")
    parser.add_argument("--data-dir", help="folder of Fashion-MNIST; default: where ci/setup.sh puts it")
    parser.add_argument("--images", type=int, default=60000, help="of Fashion-MNIST to train on; default: all")
    parser.add_argument("--test-images", type=int, default=10000, help="of Fashion-MNIST to test on; default: all")
    parser.add_argument("--epochs", type=int, default=160, help="default: 160")
    parser.add_argument("--batch-size", type=int, default=128, help="of all ranks together; default: 128")
    parser.add_argument("--lr", type=float, help="at the start; default: 0.1 of sgd, 0.001 of others")
    parser.add_argument("--momentum", type=float, help="default: 0.9 of sgd and signum")
    parser.add_argument("--weight-decay", type=float, help="default: 0.0001 of sgd, 0.1 (decoupled) of others")
    parser.add_argument(
        "--milestones",
        type=int,
        nargs="*",
        default=[32000, 48000],
        help="steps after which lr is a tenth; default: 32k, 48k",
    )
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage; default: 16")
    parser.add_argument("--blocks", type=int, default=3, help="of a stage; default: 3, which is ResNet-20")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights, order, crops and flips; default: 0")
    parser.add_argument(
        "--checkpoint", help="file that is written after each epoch; where it exists, training goes on from it"
    )
    parser.add_argument("--log", help="file of JSON lines, one an epoch")
    devices.add_argument(parser)
    args = parser.parse_args(argv)
    defaults = SETTINGS[args.optimizer]
    for name in Settings._fields:
        if getattr(args, name) is None:
            setattr(args, name, getattr(defaults, name))
    return args


def load(args) -> images.Images:
    """What the arguments ask for."""
    if args.cifar:
        return images.cifar10(args.cifar)
    return images.small_fashion_mnist(args.images, args.test_images, args.data_dir)


class Log:
    """Accuracy after each epoch, printed and written by rank 0; a training that goes on keeps the lines of before.

    Args:
        args: of the command line.
        shown: on one rank only.
        done: epochs of before.
        coordinates, ranks: for what float32 sends.
        about: what to write beside, in each line.
    """

    def __init__(self, args, shown: bool, done: int, coordinates: int, ranks: int, **about):
        self._path = Path(args.log) if args.log and shown else None
        self._shown, self._epochs = shown, args.epochs
        self._float32 = float32_bytes(coordinates, ranks)
        lines = self._path.read_text().splitlines() if self._path and self._path.exists() and done else []
        self.lines = [line for line in map(json.loads, lines) if line["epoch"] <= done]
        self._about = {"optimizer": args.optimizer, "lr": args.lr, "seed": args.seed, "ranks": ranks, **about}
        self.bytes = self.lines[-1]["bytes"] if self.lines else 0

    def step(self, sent: int | None):
        """A step has sent so many bytes; None: those of float32."""
        self.bytes += self._float32 if sent is None else sent

    def epoch(self, number: int, loss: float, accuracy: float):
        """An epoch is over."""
        if not self._shown:
            return
        line = {"epoch": number, "loss": round(loss, 4), "accuracy": accuracy, "bytes": self.bytes}
        self.lines.append({**self._about, **line})
        print(f"epoch {number:3d}/{self._epochs}  loss {loss:.4f}  test accuracy {100 * accuracy:.2f} %", flush=True)
        if self._path:
            part = self._path.with_name(self._path.name + ".part")
            part.write_text("".join(json.dumps(each) + "\n" for each in self.lines))
            os.replace(part, self._path)
