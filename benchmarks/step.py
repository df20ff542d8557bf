"""A training step of a ResNet-50-sized model, ways side by side: mpirun -np 4 python -m benchmarks step

The model has the 161 parameters of ResNet-50 (25.6 million coordinates), last first, and its backward does nothing but
write each gradient, so what is measured is what the optimizer adds: communication and update, less what overlaps.
With --coordinates 1e5 it is a small model of 10 parameters, where what an op costs by itself is all that counts:

    mpirun -np 4 python -m benchmarks step --coordinates 1e5 --methods float32 signsgd signsgd_exchange signsgd_counts

With --pause-ms 100 backward also sleeps so long in all, as a rank does whose GPU computes. The method one_bit_alone
votes with nobody: what others take beyond its time is communication, without overlap and with it.
"""

import argparse
import time

import horovod.torch as hvd
import torch
from mpi4py import MPI

import horovod_sign.torch as hvs
from benchmarks import resnet50
from benchmarks.measuring import record, save, show, side_by_side

LR = 0.01


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__ and __doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=USUAL, help=f"to compare; default: {USUAL}")
    parser.add_argument("--coordinates", type=float, help="of a model of 10 equal parameters; default: ResNet-50")
    parser.add_argument("--rounds", type=int, default=9, help="of which medians are taken; default: 9")
    parser.add_argument("--threads", type=int, default=1, help="of torch, and of the kernels, in each rank; default: 1")
    parser.add_argument("--pause-ms", type=float, default=0.0, help="that backward sleeps besides; default: 0")
    parser.add_argument("--device", default="cpu", help="of the model: cpu (default) or cuda, which ranks then share")
    parser.add_argument("--rate", default="unshaped", help="what the links are shaped to, for the record")
    parser.add_argument("--json", help="file to append results to")
    return parser.parse_args(arguments)


class _Layer(torch.autograd.Function):
    """Passes its input on; its backward writes the gradient of one parameter."""

    @staticmethod
    def forward(ctx, x, p, gradient, pause):
        ctx.gradient, ctx.pause = gradient, pause
        return x + 0

    @staticmethod
    def backward(ctx, output_gradient):
        if ctx.pause:
            time.sleep(ctx.pause)
        return output_gradient, ctx.gradient * 1.0001, None, None


class Trainer:
    """The model and one way to take its step."""

    def __init__(self, wrap, gradients: list[torch.Tensor], pause: float = 0.0):
        self.pauses = _pauses(gradients, pause)
        self.parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients]
        self.gradients = gradients
        named = [(f"p{i}", p) for i, p in enumerate(self.parameters)]
        self.optimizer = wrap(self.parameters, named) if wrap else None

    def step(self):
        for p in self.parameters:
            p.grad = None
        x = torch.zeros(1, device=self.gradients[0].device, requires_grad=True)
        for p, gradient, pause in zip(self.parameters, self.gradients, self.pauses, strict=True):
            x = _Layer.apply(x, p, gradient, pause)
        x.sum().backward()
        if self.optimizer:
            self.optimizer.step()
        if x.is_cuda:
            torch.cuda.synchronize()


def _pauses(gradients: list[torch.Tensor], seconds: float, each: float = 0.01) -> list[float]:
    """Seconds that each layer sleeps, by its share of the coordinates; few long sleeps, since each wakes late."""
    coordinates = torch.tensor([float(g.numel()) for g in gradients])
    slept = torch.floor(coordinates.cumsum(0) / coordinates.sum() * seconds / each + 1e-6)
    return (slept.diff(prepend=torch.zeros(1)) * each).tolist()


class ByteAllgather:
    """One byte a sign, each tensor gathered from all by all as it arrives (as GRACE does it)."""

    def __init__(self, parameters, named):
        self.handles = {}
        for name, p in named:
            p.register_post_accumulate_grad_hook(lambda p, name=name: self._start(p, name))

    def _start(self, p, name):
        self.handles[p] = hvd.allgather_async(torch.sign(p.grad).to(torch.int8).view(1, -1), name=f"byte.{name}")

    @torch.no_grad()
    def step(self):
        for p, handle in self.handles.items():
            total = hvd.synchronize(handle).sum(0, dtype=torch.int32)
            p.add_(torch.sign(total).view_as(p), alpha=-LR)
        self.handles.clear()


def _horovod(**options):
    return lambda parameters, named: hvd.DistributedOptimizer(torch.optim.SGD(parameters, LR), named, **options)


def _ours(make, **options):
    return lambda parameters, named: hvs.DistributedOptimizer(make(parameters, LR), named, **options)


def _alone(parameters, named):
    """One bit, on a process set of this rank only: all of its work but the communication."""
    return _ours(hvs.SignSGD, abstain=False, process_set=ALONE[hvd.rank()])(parameters, named)


ALONE: list[hvd.ProcessSet] = []  # one for each rank


def _process_sets(methods: list[str]) -> list[hvd.ProcessSet]:
    """Only those that are needed: the engine goes through all of them in each of its cycles."""
    sets = hvs.node_process_sets() if "one_bit_hierarchical" in methods else []
    for rank in range(MPI.COMM_WORLD.size if "one_bit_alone" in methods else 0):
        ALONE.append(next((each for each in sets if each.ranks == [rank]), hvd.ProcessSet([rank])))
        sets += ALONE[-1:] if ALONE[-1] not in sets else []
    return sets


METHODS = {
    "backward": None,
    "float32": _horovod(),
    "float16": _horovod(compression=hvd.Compression.fp16),
    "byte_allgather": ByteAllgather,
    "signsgd": _ours(hvs.SignSGD),
    "signsgd_exchange": _ours(hvs.SignSGD, transport="exchange"),
    "signsgd_counts": _ours(hvs.SignSGD, transport="counts"),
    "signsgd_one_bit": _ours(hvs.SignSGD, abstain=False),
    "signum_one_bit": _ours(hvs.Signum, abstain=False),
    "one_bit_no_overlap": _ours(hvs.SignSGD, abstain=False, overlap=False),
    "one_bit_alone": _alone,
    "one_bit_hierarchical": _ours(hvs.SignSGD, abstain=False, hierarchical=True),
}
# Others differ from signsgd in small models only, or where nodes have several ranks.
USUAL = [name for name in METHODS if name not in ("signsgd_exchange", "signsgd_counts", "one_bit_hierarchical")]


def main(arguments=None):
    args = parse_arguments(arguments)
    hvd.init(process_sets=_process_sets(args.methods))
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(hvd.rank())
    sizes = resnet50.sizes(args.coordinates)
    gradients = [torch.randn(n, generator=generator).to(args.device) for n in sizes]
    names = ["backward", *(name for name in args.methods if name != "backward")]
    trainers = {name: Trainer(METHODS[name], gradients, 1e-3 * args.pause_ms) for name in names}
    results = side_by_side({name: each.step for name, each in trainers.items()}, args.rounds)
    coordinates = sum(map(len, gradients))
    what = {"kind": "step", "rate": args.rate, "pause_ms": args.pause_ms, "device": args.device}
    what |= {"coordinates": coordinates, "tensors": len(gradients)}
    records = [record(what, name, rounds) for name, rounds in results.items()]
    save(args.json, records)
    if MPI.COMM_WORLD.rank == 0:
        alone, where = (
            records[0]["ms"],
            f"{coordinates / 1e6:.3g} M coordinates, {hvd.size()} ranks, {args.rate}, {args.device}",
        )
        show(f"training step, {where}; backward alone {alone:.1f} ms; what each adds to it:", records[1:], alone)
        show_communication({r["method"]: r["ms"] for r in records})


def show_communication(ms: dict[str, float]):
    """What part of a step of one bit is communication, without overlap and with it."""
    if {"one_bit_alone", "one_bit_no_overlap", "signsgd_one_bit"} <= ms.keys():
        alone = ms["one_bit_alone"]
        before, after = ((ms[name] - alone) / ms[name] for name in ("one_bit_no_overlap", "signsgd_one_bit"))
        print(f"  communication of one bit: {before:.0%} of the step without overlap, {after:.0%} with it", flush=True)
