"""The vote alone, six ways side by side, from gradients in memory to parameters: mpirun -np 4 python -m benchmarks vote

float32, float16    Horovod's allreduce, then x <- x - lr * mean
byte allgather      one byte a sign, gathered from all by all (as GRACE does it)
bit allgather       one bit a sign, gathered from all by all
counts, exchange    ours
"""

import argparse

import horovod.torch as hvd
import numpy as np
import torch
from mpi4py import MPI

from benchmarks.measuring import record, save, show, side_by_side
from horovod_sign.algebra import native
from horovod_sign.torch.collectives import HorovodCollectives
from horovod_sign.voting import messages
from horovod_sign.voting.messages import Planes
from horovod_sign.voting.protocols import PROTOCOLS, Vote

LR = 0.01


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__ and __doc__.splitlines()[0])
    parser.add_argument(
        "--coordinates", type=float, nargs="+", default=[1e5, 1e6, 25.6e6], help="to vote on; default: 1e5 1e6 25.6e6"
    )
    parser.add_argument("--rounds", type=int, default=7, help="of which medians are taken; default: 7")
    parser.add_argument("--abstain", action="store_true", help="zeros and ties are 0, as by default in training")
    parser.add_argument("--rate", default="unshaped", help="what the links are shaped to, for the record")
    parser.add_argument("--json", help="file to append results to")
    return parser.parse_args(arguments)


class Methods:
    """The six ways, on the same gradients and parameters."""

    def __init__(self, n: int, abstain: bool):
        self.n, self.abstain = n, abstain
        generator = torch.Generator().manual_seed(hvd.rank())
        self.gradients = torch.randn(n, generator=generator)
        self.x = torch.zeros(n)
        self.segments = native.Segments([(self.gradients.data_ptr(), n)])
        self.target = native.Segments([(self.x.data_ptr(), n)])
        self.sign = np.empty(self.segments.plane_bytes, np.uint8)
        self.nonzero = np.empty_like(self.sign)
        self.collectives = HorovodCollectives()

    def float32(self):
        mean = hvd.allreduce(self.gradients, name="float32", op=hvd.Average)
        self.x.add_(mean, alpha=-LR)

    def float16(self):
        mean = hvd.allreduce(self.gradients, name="float16", op=hvd.Average, compression=hvd.Compression.fp16)
        self.x.add_(mean, alpha=-LR)

    def byte_allgather(self):
        gathered = hvd.allgather(torch.sign(self.gradients).to(torch.int8), name="bytes")
        total = gathered.view(hvd.size(), self.n).sum(0, dtype=torch.int32)
        self.x.add_(torch.sign(total), alpha=-LR)

    def bit_allgather(self):
        mine = messages.split(self._ballot(), [(0, len(self.sign))])[0]
        gathered = hvd.allgather(torch.from_numpy(mine), name="bits").numpy()
        ballots = messages.parse(gathered, [len(self.sign)] * hvd.size())
        self._apply(messages.tally(ballots, abstain=self.abstain))

    def counts(self):
        self._vote("counts")

    def exchange(self):
        self._vote("exchange")

    def _vote(self, transport: str):
        protocol = PROTOCOLS[transport](self._ballot(), hvd.rank(), hvd.size(), abstain=self.abstain)
        self._apply(Vote(protocol, self.collectives, transport).wait())

    def _ballot(self) -> Planes:
        mode = native.ABSTAIN if self.abstain else native.ONEBIT
        zeros, nans = native.kernels().pack("float32", mode, self.segments, self.sign, self.nonzero)
        return Planes(self.sign, self.nonzero if zeros + nans else None)

    def _apply(self, decided: Planes):
        native.kernels().apply("float32", self.target, decided.sign, decided.nonzero, LR)


def main(arguments=None):
    args = parse_arguments(arguments)
    hvd.init()
    torch.set_num_threads(1)
    native.kernels().threads = 1
    for n in map(int, args.coordinates):
        each = Methods(n, args.abstain)
        names = ("float32", "float16", "byte_allgather", "bit_allgather", "counts", "exchange")
        results = side_by_side({name: getattr(each, name) for name in names}, args.rounds)
        what = {"kind": "vote", "rate": args.rate, "coordinates": n, "abstain": args.abstain}
        records = [record(what, name, rounds) for name, rounds in results.items()]
        save(args.json, records)
        if MPI.COMM_WORLD.rank == 0:
            show(f"vote on {n / 1e6:g} M coordinates, {hvd.size()} ranks, {args.rate}", records)
