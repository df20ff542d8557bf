"""What scripts do to parameters that are on a device, and how it is compared with the same on the CPU.

Without a GPU (TRITON_INTERPRET=0 says that there is one) tensors stay on the CPU, in the hands of the kernels for
devices. Gradients are given, by losses that are linear in the parameters, since processors round differently.
"""

import os

import horovod.torch as hvd
import numpy as np
import pytest
import torch
from kernel_sets import use_kernels
from mpi4py import MPI
from ranks import RANK, SIZE

import horovod_sign.torch as hvs

ON_GPU = os.environ["TRITON_INTERPRET"] == "0"
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
SHAPES = [(5, 3), (64,), (130,), (7, 3, 2, 2), (4000,)]
STEPS = 4


class Script:
    """A training, of which each kind below is a variant.

    Args:
        device: of the parameters.
        kind: the optimizer.
        dtype: of the parameters.
        usual: options of `hvs.DistributedOptimizer`, also where it is wrapped again.
        **options: further ones.
    """

    def __init__(self, device: torch.device, kind: str = "Signum", dtype=torch.float32, usual=None, **options):
        self.device, self.dtype = device, dtype
        self._usual = {"transport": "exchange", **(usual or {})}  # votes that start in backward
        random = np.random.default_rng(1)
        values = [torch.tensor(random.standard_normal(shape), dtype=dtype) for shape in SHAPES]
        self.parameters = [torch.nn.Parameter(value.to(device)) for value in values]
        self.optimizer = self.wrap(kind, **options)

    def wrap(self, kind: str, **options):
        if kind == "Lion":
            plain = hvs.Lion(self.parameters, 0.125, (0.5, 0.75), weight_decay=0.25)
        elif kind == "SGD":  # its own momentum, and ours
            plain = torch.optim.SGD(self.parameters, 0.125, momentum=0.5)
            options.setdefault("compression", hvs.Compression.signum(0.75))
        elif kind == "SignSGD":
            plain = hvs.SignSGD(self.parameters, 0.125, weight_decay=0.25)
        else:
            plain = hvs.Signum(self.parameters, 0.125, 0.75, weight_decay=0.25)
        return hvs.DistributedOptimizer(plain, **{**self._usual, **options})

    def given(self, step: int) -> list[torch.Tensor]:
        """Gradients of this rank, with zeros, so that votes tie."""
        random = np.random.default_rng([step, RANK])
        return [torch.tensor(random.integers(-2, 3, s) / 4, dtype=self.dtype) for s in SHAPES]

    def loss(self, step: int) -> torch.Tensor:
        pairs = zip(self.parameters, self.given(step), strict=True)
        return sum((p.to(self.device) * g.to(self.device)).sum() for p, g in pairs)

    def step(self, step: int):
        self.optimizer.zero_grad()
        self.loss(step).backward()
        self.optimizer.step()

    def results(self) -> list[np.ndarray]:
        """Parameters, momenta, and what the last votes were like."""
        tensors = [p.detach() for p in self.parameters]
        states = [self.optimizer.vote_state(p).get("momentum_buffer") for p in self.parameters]
        tensors += [m for m in states if m is not None]
        statistics = self.optimizer.vote_statistics()
        return [*(t.cpu().double().numpy() for t in tensors), np.array(statistics[1:8], np.float64)]


def scaled(script: Script):
    """One rank overflows in some steps."""
    script.scaler = torch.amp.GradScaler(script.device.type, init_scale=8.0, growth_interval=100)
    script.optimizer = script.wrap("Signum", grad_scaler=script.scaler)
    for step in range(STEPS):
        script.optimizer.zero_grad()
        script.scaler.scale(script.loss(step)).backward()
        if step == 1 and RANK == 1:
            script.parameters[0].grad[0, 0] = torch.inf
        script.scaler.step(script.optimizer)
        script.scaler.update()


def accumulated(script: Script):
    script.optimizer = script.wrap("Signum", backward_passes_per_step=2)
    for step in range(STEPS):
        script.optimizer.zero_grad(set_to_none=False)
        script.loss(step).backward()
        script.loss(step + 100).backward()
        script.optimizer.step()


def clipped(script: Script):
    """Votes on gradients that were clipped, and votes that are."""
    script.optimizer = script.wrap("SGD", overlap=False)
    for step in range(STEPS):
        script.optimizer.zero_grad()
        script.loss(step).backward()
        torch.nn.utils.clip_grad_value_(script.parameters, 0.25)
        if step % 2:
            script.optimizer.step()
            continue
        script.optimizer.synchronize()
        torch.nn.utils.clip_grad_value_(script.parameters, 0.5)
        with script.optimizer.skip_synchronize():
            script.optimizer.step()


def resumed(script: Script):
    for step in range(2):
        script.step(step)
    state = hvs.gather_state_dict(script.optimizer)
    state = hvd.broadcast_object(state, name="state")
    script.optimizer = script.wrap("Signum")
    script.optimizer.load_state_dict(state)
    for step in range(2, STEPS):
        script.step(step)


def broadcast(script: Script):
    """As scripts of Horovod's begin: replicas that differ are made alike."""
    if RANK == 1:
        with torch.no_grad():
            for p in script.parameters:
                p.add_(1.0)
    hvd.broadcast_parameters({str(i): p.data for i, p in enumerate(script.parameters)}, root_rank=0)
    hvd.broadcast_optimizer_state(script.optimizer, root_rank=0)
    for step in range(STEPS):
        script.step(step)


def frozen(script: Script):
    """Parameters are frozen, come back, and are added."""
    for step in range(STEPS):
        if step == 1:
            script.parameters[1].requires_grad_(False)
        if step == 2:
            script.parameters[1].requires_grad_(True)
            script.extra = torch.nn.Parameter(torch.ones(9, device=script.device))
            script.optimizer.add_param_group({"params": [script.extra], "lr": 0.5})
        script.optimizer.zero_grad()
        loss = script.loss(step)
        if step >= 2:
            loss = loss + script.extra.sum() * (1 - 2 * RANK)
        loss.backward()
        script.optimizer.step()


def without_gradients(script: Script):
    """Some have none, on one rank or on all; NaN on one rank."""
    for step in range(STEPS):
        script.optimizer.zero_grad()
        script.loss(step).backward()
        if RANK == 1:
            script.parameters[step].grad = None
        script.parameters[4].grad = None
        if RANK == 0:
            script.parameters[(step + 1) % 4].grad.view(-1)[0] = torch.nan
        script.optimizer.step()


def moved(script: Script):
    """The model is wrapped on the CPU, and moved then."""
    for p in script.parameters:
        p.data = p.data.cpu()
    script.optimizer = script.wrap("Signum")
    script.device, there = torch.device("cpu"), script.device
    script.step(0)
    script.device = there
    script.optimizer.zero_grad()
    for p in script.parameters:
        p.data = p.data.to(there)
    for step in range(1, STEPS):
        script.step(step)


def mixed(script: Script):
    """Some parameters on the CPU, some on the device, in one bucket."""
    for p in script.parameters[::2]:
        p.data = p.data.cpu()
    script.optimizer = script.wrap("Signum")
    for step in range(STEPS):
        script.step(step)


def lying_otherwise(script: Script):
    """A parameter and gradients whose memory is in another order."""
    script.parameters[3].data = script.parameters[3].data.to(memory_format=torch.channels_last)
    for step in range(STEPS):
        script.optimizer.zero_grad()
        script.loss(step).backward()
        p = script.parameters[0]
        p.grad = p.grad.t().contiguous().t()
        script.optimizer.step()


def on_other_streams(script: Script):
    """Backward runs on a stream of the user's, the step on the usual one; with little between them."""
    stream = torch.cuda.Stream() if ON_GPU else None
    for step in range(STEPS):
        script.optimizer.zero_grad()
        if stream is None:
            script.loss(step).backward()
        else:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                torch.cuda._sleep(10_000_000)
                script.loss(step).backward()
            torch.cuda.current_stream().wait_stream(stream)
        script.optimizer.step()


def given_up(script: Script):
    """Backward fails half way, in some steps, and is done again."""

    def fail(gradient):
        raise RuntimeError("out of memory")

    for step in range(STEPS):
        script.optimizer.zero_grad()
        if step % 2:
            hook = script.parameters[0].register_hook(fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                script.loss(step).backward()
            hook.remove()
            script.optimizer.zero_grad()
        script.loss(step).backward()
        script.optimizer.step()


def small_buckets(script: Script):
    script.optimizer = script.wrap("Signum", bucket_cap_mb=0.0003)
    for step in range(STEPS):
        script.step(step)


def one_bit_counts(script: Script):
    script.optimizer = script.wrap("SignSGD", abstain=False, transport="counts")
    for step in range(STEPS):
        script.step(step)


def by_mpi_itself(script: Script):
    """As small models do by default."""
    script.optimizer = script.wrap("Signum", transport="auto", bucket_cap_mb=0.001)
    for step in range(STEPS):
        script.step(step)


def hierarchical(script: Script):
    """Both ranks are of one node, so the vote is that of their mean."""
    script.optimizer = script.wrap("Signum", hierarchical=True)
    for step in range(STEPS):
        script.step(step)


def stock(script: Script):
    """Horovod's own optimizer, with our compression."""
    script.parameters = [torch.nn.Parameter(p.detach().clone()) for p in script.parameters]
    named = [(str(i), p) for i, p in enumerate(script.parameters)]
    compression = hvs.Compression.signum(0.75, named_parameters=named)
    plain = torch.optim.SGD(script.parameters, 0.125)
    optimizer = hvd.DistributedOptimizer(plain, named_parameters=named, compression=compression, op=hvd.Sum)
    for step in range(STEPS):
        optimizer.zero_grad()
        script.loss(step).backward()
        optimizer.step()


def assert_the_same(script, monkeypatch, usual=({}, {}), kernels="operations", **options):
    """What a script makes of tensors of the CPU, and of those on a device, on all ranks."""
    results = []
    for device, by, each in ((torch.device("cpu"), "native", usual[0]), (DEVICE, kernels, usual[1])):
        if not ON_GPU:
            use_kernels(monkeypatch, by)
        training = Script(device, usual=each, **options)
        script(training)
        results.append(training.results())
    unlike = [i for i, pair in enumerate(zip(*results, strict=True)) if not np.array_equal(*pair, equal_nan=True)]
    ends = MPI.COMM_WORLD.allgather((unlike, [each.tobytes() for each in results[1][: len(SHAPES)]]))
    assert [each for each, _ in ends] == [[]] * SIZE, "what the device makes differs, on a rank"
    assert all(values == ends[0][1] for _, values in ends), "the replicas differ"


def plain(script: Script):
    for step in range(STEPS):
        script.step(step)


# Whose parameters are all on one device, whatever carries votes.
ON_ONE_DEVICE = [
    scaled,
    accumulated,
    clipped,
    resumed,
    broadcast,
    frozen,
    without_gradients,
    lying_otherwise,
    on_other_streams,
    given_up,
    small_buckets,
]
