"""Which device a rank of the examples trains on: `--cuda`, `--no-cuda`, and one GPU a rank."""

import argparse


def add_argument(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--cuda",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="train on GPUs, one a rank (--cuda: or stop), or on the CPU; default: on GPUs if there are any",
    )


def pinned(args, gpus, local_rank: int):
    """The one of this host's `gpus` that is the rank's, by its number on the host; None: the CPU is to be used.

    Where a launcher shows each rank a GPU of its own, that is the only one, and all ranks take it.
    """
    if args.cuda and not gpus:
        raise SystemExit("--cuda: the framework finds no GPU here (a build without CUDA, or no driver)")
    return gpus[local_rank % len(gpus)] if gpus and args.cuda is not False else None


def pin_torch(args, local_rank: int):
    """The torch.device of this rank, which torch takes from here on wherever "cuda" is said."""
    import torch

    gpu = pinned(args, range(torch.cuda.device_count()), local_rank)
    if gpu is None:
        return torch.device("cpu")
    torch.cuda.set_device(gpu)
    return torch.device("cuda", gpu)


def pin_tensorflow(args, local_rank: int):
    """Shows TensorFlow, before its first operation, the one GPU of this rank, or none."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    gpu = pinned(args, gpus, local_rank)
    if gpu is not None:
        tf.config.experimental.set_memory_growth(gpu, True)
    if gpus:
        tf.config.set_visible_devices([] if gpu is None else gpu, "GPU")
