"""The flags of the Fashion-MNIST examples, whatever the framework."""

import argparse

import devices

# signsgd and signum: the best of grids of factors of about 1.5, for 4 ranks and 4 epochs. sgd: 0.2 is as good with some
# initial weights (within 0.1 point), and does not learn at all with others.
LEARNING_RATES = {"sgd": 0.1, "signsgd": 0.002, "signum": 0.002}


def parse_arguments(doc: str | None):
    """The arguments of the command line; the first line of `doc` (None under python -OO) says what the program does."""
    parser = argparse.ArgumentParser(description=doc and doc.splitlines()[0])
    parser.add_argument(
        "--optimizer", choices=LEARNING_RATES, default="signum", help="whose steps are taken; default: signum"
    )
    parser.add_argument("--lr", type=float, help=f"learning rate at the start; default: {LEARNING_RATES}")
    parser.add_argument("--momentum", type=float, default=0.9, help="of sgd and signum; default: 0.9")
    parser.add_argument(
        "--weight-decay", type=float, default=0.0, help="of a step, times the learning rate; default: 0"
    )
    parser.add_argument("--epochs", type=int, default=4, help="passes over all images; default: 4")
    parser.add_argument("--batch-size", type=int, default=64, help="images in a step of each rank; default: 64")
    parser.add_argument("--seed", type=int, default=42, help="of initial weights and the images' order; default: 42")
    parser.add_argument(
        "--data-dir", help="folder with the four *-ubyte.gz files; default: where ci/setup.sh puts them"
    )
    devices.add_argument(parser)
    parser.add_argument("--log-interval", type=int, default=50, help="steps between lines of progress; default: 50")
    parser.add_argument("--record", help="file to write accuracy over seconds and bytes to, as JSON lines (PyTorch)")
    parser.add_argument("--evaluate-every", type=int, default=0, help="steps, besides the end of each epoch (PyTorch)")
    return parser.parse_args()
