"""Follows one gradient by a profiler, from its hook to the update: which files of the package it enters, how often.

    ci/run 2 .venv/bin/python -m benchmarks walk              PyTorch
    ci/run 2 .venv/bin/python -m benchmarks walk --keras      Keras, executed eagerly

A model of one parameter takes some steps with Signum; one in which nothing is due but votes is followed on rank 0. How
often something is polled differs from run to run; which files are entered does not.
"""

import argparse
import collections
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mpi4py import MPI  # before Horovod, which else ends MPI as soon as one rank is done

import horovod_sign

_HOME = str(Path(horovod_sign.__file__).parent) + os.sep
_STEP = 5  # earlier ones make what later ones keep, and in those of powers of two gradients are looked at more closely
_SIZE = 1000


class Walk:
    """What of the package is called while it is entered: functions by file, in the order in which files are entered."""

    def __init__(self):
        self.files: dict[str, collections.Counter] = {}

    def __enter__(self):
        sys.setprofile(self._see)

    def __exit__(self, *_):
        sys.setprofile(None)

    def _see(self, frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(_HOME):
            name = code.co_filename[len(_HOME) :].removesuffix(".py")
            self.files.setdefault(name, collections.Counter())[code.co_name] += 1


def follow(step: Callable[[], None]) -> Walk:
    """One of several steps, all alike."""
    walk = Walk()
    for _ in range(_STEP):
        step()
    with walk:
        step()
    return walk


def in_torch() -> Walk:
    import torch

    import horovod_sign.torch as hvs

    hvs.init()
    p = torch.nn.Parameter(torch.zeros(_SIZE))
    optimizer = hvs.DistributedOptimizer(hvs.Signum([p], lr=0.1), transport="exchange")
    gradient = torch.from_numpy(_gradient(hvs.rank()))

    def step():
        (p * gradient).sum().backward()
        optimizer.step()

    return follow(step)


def in_keras() -> Walk:
    import keras
    import tensorflow as tf

    import horovod_sign.tensorflow.keras as hvs

    hvs.init()
    x = keras.Variable(np.zeros(_SIZE, np.float32))
    optimizer = hvs.DistributedOptimizer(hvs.Signum(learning_rate=0.1), transport="exchange")
    optimizer.build([x])
    gradient = tf.constant(_gradient(hvs.rank()))
    return follow(lambda: optimizer.apply([gradient]))


def _gradient(rank: int) -> np.ndarray:
    return np.random.default_rng(rank).standard_normal(_SIZE).astype(np.float32)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keras", action="store_true", help="in Keras; else in PyTorch")
    walk = in_keras() if parser.parse_args(arguments).keras else in_torch()
    if MPI.COMM_WORLD.rank == 0:
        for name, functions in walk.files.items():
            print(f"{name:24}{functions.total():5}  {', '.join(functions)}")
        print(f"{len(walk.files)} files")


if __name__ == "__main__":
    main()
