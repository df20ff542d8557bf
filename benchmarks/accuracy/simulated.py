"""Accuracy by step, of four workers in one process: it does not hang on the network, so it is measured without one.

- Averages: the mean of the workers' gradients is the gradient of all their images.
- float16: each worker's gradient is rounded, and the sum is added up in float16, as Horovod's compression does.
- PowerSGD: its factors P and Q are sums over workers, and so is the mean of their errors that are fed back, so four
  workers take the steps of one that has all images; PyTorch's own hook runs, over Gloo, in a group of one process.
- Votes: each worker's ballot is packed and tallied by the package's own kernels. A worker has its own momentum.
"""

import contextlib
import gc
import tempfile

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as powersgd
from torch.nn.parallel import DistributedDataParallel

from benchmarks.accuracy.task import MOMENTUM, Task
from horovod_sign import algebra

POWERSGD_FROM = 2  # the first step that PyTorch's hook can compress; those before are float32
CURVE_OF = {"ddp_float16": "float16"}  # on ranks, whose accuracy by step is another's


class _Mean:
    """SGD with momentum on the mean gradient."""

    def __init__(self, model):
        self.network = model
        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.SGD(self.parameters, 0.1, MOMENTUM)

    def step(self, task: Task, order, step: int, lr: float):
        self.optimizer.zero_grad(set_to_none=False)
        self.gradients(task, order, step)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()

    def gradients(self, task, order, step):
        task.loss(self.network, order, step).backward()


class _Half(_Mean):
    """The same, on gradients that travel as float16."""

    def gradients(self, task, order, step):
        total = [torch.zeros_like(p, dtype=torch.float16) for p in self.parameters]
        for worker in range(task.workers):
            mine = torch.autograd.grad(task.loss(self.network, order, step, worker), self.parameters)
            for into, gradient in zip(total, mine, strict=True):
                into += gradient.half()
        for p, gradient in zip(self.parameters, total, strict=True):
            p.grad = (gradient / task.workers).float()


class _PowerSGD(_Mean):
    """The same, on what PyTorch's hook makes of the gradient."""

    def __init__(self, model, rank):
        super().__init__(model)
        self.network = DistributedDataParallel(model, bucket_cap_mb=1000)
        self.network.register_comm_hook(powersgd_state(rank), powersgd.powerSGD_hook)


class _Vote:
    """SignSGD (momentum 0) or Signum, by the vote of all workers."""

    def __init__(self, model, workers, momentum, abstain=True):
        self.network, self.momentum, self.abstain = model, momentum, abstain
        self.parameters = list(model.parameters())
        n = sum(p.numel() for p in self.parameters)
        self.momenta = [torch.zeros(n) for _ in range(workers)] if momentum else None

    def step(self, task: Task, order, step: int, lr: float):
        ballots = [self._ballot(task.loss(self.network, order, step, worker), worker) for worker in range(task.workers)]
        sign, nonzero = algebra.tally([b[0] for b in ballots], [b[1] for b in ballots], one_bit=not self.abstain)
        n = sum(p.numel() for p in self.parameters)
        votes = torch.from_numpy(algebra.unpack_votes(sign, nonzero, n))
        with torch.no_grad():
            for p, vote in zip(self.parameters, votes.split([p.numel() for p in self.parameters]), strict=True):
                p.sub_(vote.view_as(p) * torch.tensor(lr, dtype=p.dtype))

    def _ballot(self, loss, worker):
        flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, self.parameters)])
        if self.momenta:
            flat = self.momenta[worker].mul_(self.momentum).add_(flat, alpha=1 - self.momentum)
        return algebra.pack_ballot(flat.numpy(), self.abstain)[:2]


METHODS = {
    "float32": lambda model, workers: _Mean(model),
    "float16": lambda model, workers: _Half(model),
    "powersgd_1": lambda model, workers: _PowerSGD(model, 1),
    "powersgd_4": lambda model, workers: _PowerSGD(model, 4),
    "signsgd": lambda model, workers: _Vote(model, workers, 0.0),
    "signum": lambda model, workers: _Vote(model, workers, MOMENTUM),
    "signsgd_one_bit": lambda model, workers: _Vote(model, workers, 0.0, abstain=False),
    "signum_one_bit": lambda model, workers: _Vote(model, workers, MOMENTUM, abstain=False),
}


def train(task: Task, method: str, lr: float, seed: int, every: int, stepped=lambda: None):
    """A training. Returns the network, and [step, accuracy] every so many steps, and at the end."""
    model = task.model(seed)
    with process_group() if "powersgd" in method else contextlib.nullcontext():
        workers, order, curve = METHODS[method](model, task.workers), task.order(seed), []
        for step in range(task.steps):
            workers.step(task, order, step, task.lr(lr, step))
            if (step + 1) % every == 0 or step + 1 == task.steps:
                curve.append([step + 1, task.accuracy(model)])
            stepped()
        del workers
        if "powersgd" in method:
            gc.collect()  # DDP is in a cycle: had it the last reference, the group's end would wait, with Python's lock
    return model, curve


def powersgd_state(rank: int) -> powersgd.PowerSGDState:
    """As the hook's documentation advises, from the first step on that it can compress."""
    return powersgd.PowerSGDState(
        None, rank, start_powerSGD_iter=POWERSGD_FROM, orthogonalization_epsilon=1e-8, random_seed=1
    )


@contextlib.contextmanager
def process_group():
    """A process group of this process alone."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()
