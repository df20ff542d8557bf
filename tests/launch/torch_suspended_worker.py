"""Trains while all ranks are stopped and go on one after the other, twice. Started by test_endings.py."""

import os
import subprocess
import sys
import time

import horovod.torch as hvd
import torch
import torch_tasks as tasks

import horovod_sign.torch as hvs
from horovod_sign.torch import direct

(transport,) = sys.argv[1:]
direct.ASKS_AFTER = 0.3
hvd.init()
nets = [tasks.model(seed) for seed in (1, 2)]
optimizers = [
    hvs.DistributedOptimizer(make(net.parameters(), 0.01), net.named_parameters(), transport=transport)
    for make, net in zip((hvs.Signum, torch.optim.SGD), nets, strict=True)
]
hvd.allreduce(torch.ones(1), name="start")
rounds = "".join(
    f"sleep {0.3 + 0.05 * hvd.rank()}; kill -STOP {os.getpid()}; sleep {1 + place}; kill -CONT {os.getpid()}; "
    f"sleep {2 - place};"
    for place in (hvd.rank(), hvd.size() - 1 - hvd.rank())
)
stops = subprocess.Popen(["sh", "-c", rounds])
step, end = 0, 0
while not end:
    for optimizer, net in zip(optimizers, nets, strict=True):
        optimizer.zero_grad()
        tasks.backward(net, step)
        optimizer.step()
    step += 1
    if step % 20 == 0:
        end = int(hvd.allreduce(torch.tensor([int(stops.poll() is not None)]), name="end", op=hvd.Min))
    time.sleep(1e-3 * hvd.rank())
for net in nets:
    tasks.assert_replicas_identical(net)
print(f"rank {hvd.rank()} is done", flush=True)
