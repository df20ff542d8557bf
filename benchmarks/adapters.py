"""One step's vote through the PyTorch adapter and through the TensorFlow adapter, side by side in one run.

    ci/run 2 .venv/bin/python -m benchmarks adapters

The gradients are those of a ResNet-50, 25.6 million coordinates in 161 variables, random, in memory when the clock
starts. Two times are taken, in milliseconds: the *vote*, from gradients to votes, and the *step*, from gradients to
parameters stepped by SignSGD. Rounds alternate between the adapters, so that whatever else the machine does hits both;
medians over rounds, of the slowest rank of each round.

TensorFlow takes new memory for its results, where PyTorch writes into its gradients. On a CPU the C library may give
freed memory back to the system, to fault it in again at each step: up to 20 ms here, in some runs and not in others.
These settings keep it, here as in training (a GPU has TensorFlow's own allocator, and no such trouble):

    export MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=4294967296
"""

import argparse
import contextlib
import time

import numpy as np
from mpi4py import MPI
from progress import Progress

from benchmarks import resnet50

with contextlib.suppress(ImportError):
    import triton  # noqa: F401  torch's: loaded after TensorFlow it is a segmentation fault

comm = MPI.COMM_WORLD


def torch_contender(gradients, momentum, transport):
    """(set_up, vote, step) with PyTorch."""
    import horovod.torch as hvd
    import torch

    import horovod_sign.torch as hvs

    hvd.init()
    torch.set_num_threads(1)
    sources = [torch.from_numpy(g) for g in gradients]

    def make(optimizer_class, **options):
        parameters = [torch.nn.Parameter(torch.zeros(g.shape)) for g in gradients]
        return parameters, hvs.DistributedOptimizer(
            optimizer_class(parameters, lr=0.001), transport=transport, **options
        )

    compression = hvs.Compression.signum(momentum) if momentum else None
    voting, voter = make(torch.optim.SGD, compression=compression)
    stepping, stepper = make(hvs.Signum if momentum else hvs.SignSGD)

    def set_up():
        if voting[0].grad is not None:
            with voter.skip_synchronize():
                voter.step()  # ends the last round, outside of the time that is taken
        for parameters in (voting, stepping):
            for p, source in zip(parameters, sources, strict=True):
                p.grad = source.clone()

    def vote():
        voter.synchronize()
        return [p.grad.numpy() for p in voting]

    return set_up, vote, stepper.step


def tensorflow_contender(gradients, momentum, transport):
    """(set_up, vote, step) with TensorFlow."""
    import horovod.tensorflow as hvd
    import tensorflow as tf

    import horovod_sign.tensorflow.keras as hvs
    from horovod_sign import rules
    from horovod_sign.graphs.packing import Coordinates
    from horovod_sign.tensorflow.election import Election
    from horovod_sign.tensorflow.memory import OwnStates

    tf.config.threading.set_intra_op_parallelism_threads(1)
    hvd.init()
    sources = [tf.constant(g) for g in gradients]
    coordinates = [Coordinates(g.shape, tf.float32) for g in gradients]
    rule = rules.signum(momentum) if momentum else rules.signsgd()
    election = Election(rule, transport=transport)
    memory = OwnStates(rule, [g.shape for g in gradients]) if momentum else None
    labels = [str(i) for i in range(len(gradients))]
    variables = [tf.Variable(tf.zeros(g.shape)) for g in gradients]
    optimizer = hvs.DistributedOptimizer(
        hvs.Signum(0.001, momentum) if momentum else hvs.SignSGD(0.001), transport=transport
    )

    @tf.function(autograph=False)
    def vote():
        return election.vote(sources, coordinates, labels, memory.next(range(len(sources))) if memory else None)

    @tf.function(autograph=False)
    def step():
        optimizer.apply(sources, variables)

    return lambda: None, vote, step


def median_ms(times: list[float]) -> float:
    return 1000 * float(np.median(times))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="of which medians are taken; default: 20")
    parser.add_argument("--momentum", type=float, default=0.0, help="vote by Signum; default: 0, by signSGD")
    parser.add_argument(
        "--transport", default="exchange", choices=["exchange", "counts"], help="of the votes; default: exchange"
    )
    parser.add_argument("--coordinates", type=float, help="of a model of 10 equal variables; default: ResNet-50")
    args = parser.parse_args(arguments)

    random = np.random.default_rng(comm.rank)
    gradients = [random.standard_normal(shape).astype(np.float32) for shape in resnet50.shapes(args.coordinates)]
    # TensorFlow first: imported after PyTorch it would share that library's thread settings.
    contenders = {
        "TensorFlow": tensorflow_contender(gradients, args.momentum, args.transport),
        "PyTorch": torch_contender(gradients, args.momentum, args.transport),
    }
    times = {(name, what): [] for name in contenders for what in ("vote", "step")}
    for round_number in Progress(range(args.rounds + 3), "adapters", unit="round", shown=comm.rank == 0):
        votes = {}
        for name, (set_up, *actions) in contenders.items():
            set_up()
            for what, action in zip(("vote", "step"), actions, strict=True):
                comm.Barrier()
                start = time.perf_counter()
                result = action()
                slowest = comm.allreduce(time.perf_counter() - start, MPI.MAX)
                if round_number >= 3:
                    times[name, what].append(slowest)
                if round_number == 0 and what == "vote":
                    votes[name] = result
                del result  # as in training, where a step's gradients are gone before the next
        if round_number == 0:
            pairs = zip(votes["TensorFlow"], votes["PyTorch"], strict=True)
            assert all(np.array_equal(np.asarray(a), b) for a, b in pairs), "the adapters' votes differ"

    if comm.rank == 0:
        coordinates = sum(g.size for g in gradients)
        print(f"{comm.size} ranks, {coordinates:,} coordinates in {len(gradients)} variables, {args.transport}")
        for what in ("vote", "step"):
            ours, reference = (median_ms(times[name, what]) for name in ("TensorFlow", "PyTorch"))
            print(f"{what}: TensorFlow {ours:.1f} ms, PyTorch {reference:.1f} ms, ratio {ours / reference:.2f}")
