"""The same methods on ranks: Horovod's, PyTorch's DistributedDataParallel over Gloo, and votes."""

import contextlib
import logging
import os
import socket

import horovod.torch as hvd
import torch
import torch.distributed as dist
from mpi4py import MPI
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as powersgd
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

import horovod_sign.torch as hvs
from benchmarks.accuracy.simulated import powersgd_state
from benchmarks.accuracy.task import MOMENTUM, Task


class Ranks:
    """The training of one method, of which this rank is one of the workers.

    Args:
        task, seed: what is learned.
        method: one of METHODS.
        lr: learning rate at the start.
    """

    def __init__(self, task: Task, method: str, lr: float, seed: int = 0):
        self.task, self._lr, self.steps = task, lr, 0
        self.model = task.model(seed)
        self._order = task.order(seed)
        self._network, self._optimizer = METHODS[method](self.model)

    def step(self):
        """One step of all ranks."""
        self._optimizer.zero_grad()
        self.task.loss(self._network, self._order, self.steps % self.task.steps, hvd.rank()).backward()
        for group in self._optimizer.param_groups:
            group["lr"] = self.task.lr(self._lr, self.steps % self.task.steps)
        self._optimizer.step()
        self.steps += 1


def _sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1, MOMENTUM)


def _horovod(**options):
    def make(model):
        return model, hvd.DistributedOptimizer(_sgd(model), model.named_parameters(), **options)

    return make


def _ddp(hook, state=lambda: None, **options):
    def make(model):
        network = DistributedDataParallel(model, **options)
        network.register_comm_hook(state(), hook)
        return network, _sgd(model)

    return make


def _vote(optimizer, abstain, **options):
    def make(model):
        own = optimizer(model.parameters(), 0.0001, **options)
        return model, hvs.DistributedOptimizer(own, model.named_parameters(), abstain=abstain)

    return make


METHODS = {
    "float32": _horovod(),
    "float16": _horovod(compression=hvd.Compression.fp16),
    "ddp_float16": _ddp(fp16_compress_hook),
    # One bucket: over Gloo the hook's futures of two buckets can cross.
    "powersgd_1": _ddp(powersgd.powerSGD_hook, lambda: powersgd_state(1), bucket_cap_mb=1000),
    "powersgd_4": _ddp(powersgd.powerSGD_hook, lambda: powersgd_state(4), bucket_cap_mb=1000),
    "signsgd": _vote(hvs.SignSGD, True),
    "signum": _vote(hvs.Signum, True, momentum=MOMENTUM),
    "signsgd_one_bit": _vote(hvs.SignSGD, False),
    "signum_one_bit": _vote(hvs.Signum, False, momentum=MOMENTUM),
}


@contextlib.contextmanager
def process_group():
    """Gloo between all ranks, over the links that hosts.sh makes where there are some."""
    comm = MPI.COMM_WORLD
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    on_hosts = os.path.exists("/sys/class/net/eth0") and _hosts_differ(comm)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "eth0" if on_hosts else "lo")
    address = socket.gethostbyname(socket.gethostname()) if on_hosts else "127.0.0.1"
    where = "tcp://{}:{}".format(*comm.bcast((address, port)))
    logging.getLogger("torch.distributed").setLevel(logging.WARNING)
    dist.init_process_group("gloo", init_method=where, rank=comm.rank, world_size=comm.size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _hosts_differ(comm) -> bool:
    return len(set(comm.allgather(socket.gethostname()))) > 1
