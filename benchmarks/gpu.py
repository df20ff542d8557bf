"""Votes on a GPU: how fast its kernels are, and what a vote adds to a training step of ResNet-50.

    python -m benchmarks gpu kernels                 kernels as a share of the device's copy bandwidth
    mpirun -np 2 python -m benchmarks gpu step       a step (forward, backward, update) beside Horovod's
    mpirun -np 2 python -m benchmarks gpu count      launches, copies and waits of a step, by the profiler
    mpirun -np 2 python -m benchmarks gpu same       parameters after some steps, beside those of the CPU

Ranks share a GPU where there are fewer than ranks; Horovod must then be built without NCCL, which does not. `step` and
`count` need torchvision. Votes that stay on a GPU need one for each rank, and NCCL: `--methods signum_device`.
"""

import argparse
import sys
import time

import torch

LR = 0.001


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__ and __doc__.splitlines()[0])
    parser.add_argument("what", choices=["kernels", "step", "count", "same"], help="see the list above")
    parser.add_argument("--coordinates", type=float, nargs="+", default=[25.6e6, 256e6], help="of kernels")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="of kernels and same")
    parser.add_argument("--tiles", type=int, nargs="+", help="coordinates a program, to try; default: the package's")
    parser.add_argument("--warps", type=int, nargs="+", help="of a program, to try; default: the package's")
    parser.add_argument("--methods", nargs="+", help="of step and count; default: all")
    parser.add_argument("--batch", type=int, default=32, help="images a rank; default: 32")
    parser.add_argument("--rounds", type=int, default=15, help="of step; default: 15")
    parser.add_argument("--json", help="file to append results to")
    return parser.parse_args(arguments)


# ----------------------------------------------------------------------------------------------------------------------
# Kernels.


def time_kernels(args):
    from horovod_sign.tensors.devices import batches, triton_kernels

    print(f"{torch.cuda.get_device_name()}: share of the bandwidth of a copy (bytes read and written by each)")
    for tile in args.tiles or [batches.TILE]:
        for warps in args.warps or [None]:
            batches.TILE = triton_kernels.TILE = tile
            if warps:
                triton_kernels._FEWEST = triton_kernels._FEW = triton_kernels._MANY = warps
            for n in map(int, args.coordinates):
                for dtype in args.dtypes:
                    _time_kernels(args, n, dtype, tile, warps)


def _time_kernels(args, n: int, dtype: str, tile: int, warps: int):
    import numpy as np
    from triton.testing import do_bench, do_bench_cudagraph

    from benchmarks import resnet50
    from benchmarks.measuring import save
    from horovod_sign.tensors.devices.staging import Staging
    from horovod_sign.tensors.devices.triton_kernels import TritonKernels
    from horovod_sign.tensors.words import Words
    from horovod_sign.voting.messages import Planes

    resnet = resnet50.sizes()
    lengths = [max(1, int(size * n / sum(resnet))) for size in resnet]
    n, device = sum(lengths), torch.device("cuda")
    words, numbers = Words.of(lengths), list(range(len(lengths)))
    kind = getattr(torch, dtype)
    gradients = [torch.randn(k, device=device).to(kind) for k in lengths]
    parameters = [torch.randn(k, device=device).to(kind) for k in lengths]
    momenta = [torch.randn(k, device=device) for k in lengths]
    width, bits = gradients[0].element_size(), n / 8
    source = torch.randn(n, device=device)
    target = torch.empty_like(source)
    planes = np.random.default_rng(0).integers(0, 256, (2, words.plane_bytes), dtype=np.uint8)
    staging = Staging(device, words, Planes(*np.zeros_like(planes)), TritonKernels())
    decided, (step,) = staging.receive(Planes(planes[0] & planes[1], planes[1]), [(1e-3, 0.1)])

    def pack(momenta=None, one_bit=False):
        staging._packed = [None]  # the planes of a step that goes on: no new counts are begun
        if momenta is None:
            staging.pack(dtype, numbers, gradients, one_bit)
        else:
            staging.interpolate_pack(dtype, numbers, gradients, momenta, (0.9, 0.99), False, one_bit)

    staging.pack(dtype, numbers, gradients, False)
    cases = {
        "copy": (lambda: target.copy_(source), 8 * n),
        "pack": (pack, width * n + 2 * bits),
        "pack, one bit": (lambda: pack(one_bit=True), width * n + bits),
        "momentum and pack": (lambda: pack(momenta), (width + 8) * n + 2 * bits),
        "update": (
            lambda: staging.apply(dtype, numbers, parameters, decided, step),
            2 * width * n + 2 * bits,
        ),
    }
    results = {}
    for name, (run, nbytes) in cases.items():
        run()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            run()
        host = (time.perf_counter() - start) / 10
        torch.cuda.synchronize()
        # The kernels as a graph, or the host's launches would be measured; a graph's copy is another, slower one.
        bench = do_bench if name == "copy" else do_bench_cudagraph
        results[name] = bench(run, rep=40, return_mode="median"), nbytes, host
    rate = results["copy"][1] / results["copy"][0]
    print(
        f"  {n / 1e6:.1f} M coordinates in {len(lengths)} tensors, {dtype}, tiles of {tile}"
        + (f", {warps} warps" if warps else "")
    )
    for name, (ms, nbytes, host) in results.items():
        share, host = nbytes / ms / rate, f"{1e6 * host:.0f} us of the host"
        print(f"    {name:20} {ms:8.4f} ms {nbytes / ms / 1e6:8.0f} GB/s   {share:5.2f}   {host}")
    what = {"kind": "gpu kernels", "device": torch.cuda.get_device_name(), "coordinates": n, "dtype": dtype}
    what |= {"tile": tile, "warps": warps, "ms": {k: ms for k, (ms, *_) in results.items()}}
    shares = {k: nbytes / ms / rate for k, (ms, nbytes, _) in results.items() if k != "copy"}
    save(args.json, [{**what, "share": shares}])
    sys.stdout.flush()


# ----------------------------------------------------------------------------------------------------------------------
# Training steps.


def _methods():
    import horovod.torch as hvd

    import horovod_sign.torch as hvs

    def horovod(**options):
        return lambda net: hvd.DistributedOptimizer(_sgd(net), net.named_parameters(), **options)

    def ours(make, **options):
        return lambda net: hvs.DistributedOptimizer(make(net.parameters(), LR), net.named_parameters(), **options)

    return {
        "alone": _sgd,
        "float32": horovod(),
        "float16": horovod(compression=hvd.Compression.fp16),
        "signsgd": ours(hvs.SignSGD),
        "signsgd_one_bit": ours(hvs.SignSGD, abstain=False),
        "signum": ours(hvs.Signum),
        "around_sgd": ours(torch.optim.SGD),
        "signum_device": ours(hvs.Signum, transport="device"),  # needs a GPU for each rank; not among the default ones
    }


def _sgd(net):
    return torch.optim.SGD(net.parameters(), LR)


class Trainer:
    """A ResNet-50 and its optimizer, on one batch of random images."""

    def __init__(self, wrap, batch: int):
        import torchvision

        torch.manual_seed(0)
        self.net = torchvision.models.resnet50().cuda()  # in NCHW: Horovod refuses channels_last gradients
        self.optimizer = wrap(self.net)
        self.images = torch.randn(batch, 3, 224, 224, device="cuda")
        self.labels = torch.randint(1000, (batch,), device="cuda")

    def backward(self):
        self.optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(self.net(self.images), self.labels)
        loss.backward()

    def step(self):
        self.backward()
        self.optimizer.step()
        torch.cuda.synchronize()


def _trainers(args):
    import horovod.torch as hvd

    hvd.init()
    torch.cuda.set_device(hvd.local_rank() % torch.cuda.device_count())
    methods = _methods()
    usual = [name for name in methods if not name.endswith("_device")]
    names = ["alone", *(name for name in args.methods or usual if name != "alone")]
    return hvd, {name: Trainer(methods[name], args.batch) for name in names}


def time_steps(args):
    from benchmarks.measuring import record, save, show, side_by_side

    hvd, trainers = _trainers(args)
    results = side_by_side({name: each.step for name, each in trainers.items()}, args.rounds, warmup=3)
    what = {"kind": "gpu step", "device": torch.cuda.get_device_name(), "batch": args.batch}
    records = [record(what, name, rounds) for name, rounds in results.items()]
    save(args.json, records)
    if hvd.rank() == 0:
        alone, where = records[0]["ms"], f"{torch.cuda.get_device_name()}, {hvd.size()} ranks on it"
        show(
            f"step of ResNet-50, batch {args.batch}, {where}; alone {alone:.1f} ms; what each adds:", records[1:], alone
        )


_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx")
_COPIES = ("cudaMemcpyAsync", "cudaMemsetAsync")
_WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize", "cudaMemcpy")


def count_calls(args):
    """What a step asks of CUDA; what it does beyond training alone is the optimizer's."""
    hvd, trainers = _trainers(args)
    alone: dict[str, int] = {}
    for name, trainer in trainers.items():
        for _ in range(3):
            trainer.step()
        waits_in_backward = ""
        if name not in ("float32", "float16"):  # Horovod waits in its own thread, which would end the process
            torch.cuda.set_sync_debug_mode("error")
            trainer.backward()
            torch.cuda.set_sync_debug_mode("default")
            trainer.optimizer.step()
            waits_in_backward = "; torch says that backward never waits"
        backward, step = _calls(trainer.backward), _calls(trainer.optimizer.step)
        seconds = sorted(_step_by_itself(trainer) for _ in range(9))[4]
        if hvd.rank() == 0:
            beyond = {k: backward[k] - alone[k] for k in backward} if name != "alone" else backward
            alone = backward if name == "alone" else alone
            print(
                f"  {name:18} backward {beyond}, step {step}, {1e3 * seconds:.1f} ms by itself{waits_in_backward}",
                flush=True,
            )


def _step_by_itself(trainer) -> float:
    """Seconds of a step that begins when backward has ended on the device, so that nothing overlaps."""
    trainer.backward()
    torch.cuda.synchronize()
    start = time.perf_counter()
    trainer.optimizer.step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _calls(run) -> dict[str, int]:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        run()
    calls = [event.name for event in profile.events()]
    kinds = {"launches": _LAUNCHES, "copies": _COPIES, "waits": _WAITS}
    # The profiler's own wait at its end is not counted.
    return {kind: sum(calls.count(each) for each in names) - (kind == "waits") for kind, names in kinds.items()}


def compare_with_cpu(args):
    """The same gradients on the CPU and on the GPU: the same parameters, bit for bit."""
    import horovod.torch as hvd

    import horovod_sign.torch as hvs
    from benchmarks import resnet50
    from benchmarks.step import Trainer as Given

    hvd.init()
    torch.cuda.set_device(hvd.local_rank() % torch.cuda.device_count())
    sizes = [max(1, n // 8) for n in resnet50.sizes()]
    around = {"compression": hvs.Compression.signum(0.5)}
    for dtype in (getattr(torch, name) for name in args.dtypes):
        generator = torch.Generator().manual_seed(hvd.rank())
        gradients = [torch.randn(n, generator=generator).to(dtype) for n in sizes]
        for name, make, options in (
            ("SignSGD", lambda p: hvs.SignSGD(p, 0.01, 0.1), {}),
            ("Signum", lambda p: hvs.Signum(p, 0.01, 0.9, 0.1), {}),
            ("Signum, abstain=False", lambda p: hvs.Signum(p, 0.01, 0.9), {"abstain": False}),
            ("SGD, counts", lambda p: torch.optim.SGD(p, 0.01), {"transport": "counts", **around}),
        ):  # fmt: skip
            ends = []
            for device in ("cpu", "cuda"):
                there = [g.to(device) for g in gradients]

                def wrap(parameters, named, make=make, options=options):
                    return hvs.DistributedOptimizer(make(parameters), named, **options)

                trainer = Given(wrap, there)
                for _ in range(5):
                    trainer.step()
                ends.append([p.detach().cpu() for p in trainer.parameters] + [trainer.optimizer.vote_statistics()])
            *cpu, cpu_statistics = ends[0]
            *gpu, gpu_statistics = ends[1]
            differ = sum(int((a != b).sum()) for a, b in zip(cpu, gpu, strict=True))
            same = hvd.allgather(torch.tensor([differ]), name=f"{dtype}.{name}").tolist()
            if hvd.rank() == 0:
                alike = cpu_statistics[:8] == gpu_statistics[:8]
                print(
                    f"  {hvd.size()} ranks, {dtype}, {name}: coordinates that differ {same}; statistics alike {alike}"
                )
                sys.stdout.flush()


def main(arguments=None):
    args = parse_arguments(arguments)
    {"kernels": time_kernels, "step": time_steps, "count": count_calls, "same": compare_with_cpu}[args.what](args)
