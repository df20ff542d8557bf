"""Trains until one rank ends, in one of several ways; the others say what they are told. Started by test_endings.py."""

import atexit
import os
import signal
import sys
import threading
import time

how, transport, first = sys.argv[1:]
if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    # Runs after Horovod's own exit handler, which is registered later: mpirun ends the other ranks as soon as this
    # process is gone, and they are to speak first.
    atexit.register(time.sleep, 3)
if first == "mpi4py":  # Horovod then leaves it to mpi4py to finalize MPI
    from mpi4py import MPI  # noqa: F401

import horovod.torch as hvd  # noqa: E402
import torch  # noqa: E402
from horovod.common.exceptions import HorovodInternalError  # noqa: E402

import horovod_sign.torch as hvs  # noqa: E402

hvd.init()
torch.manual_seed(1)
net = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 2))
optimizer = hvs.DistributedOptimizer(hvs.Signum(net.parameters(), 0.01), net.named_parameters(), transport=transport)
ends = hvd.rank() == 1
steps = 0


def interrupt_in_a_moment():
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGINT)


def step():
    optimizer.zero_grad()
    net(torch.randn(8, 20)).square().sum().backward()
    optimizer.step()


def end():
    if how == "exception":
        raise ValueError("of the user's own")
    if how == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    if how == "interrupted while it waits":  # for rank 0, which is late
        threading.Thread(target=interrupt_in_a_moment, daemon=True).start()
        step()
    if how == "shutdown":
        hvd.shutdown()
        time.sleep(3)  # here a rank of its own goes on with something else
    print(f"rank {hvd.rank() if hvd.is_initialized() else 1} is done", flush=True)
    sys.exit()


try:
    while True:
        if steps == 3 and ends:
            end()
        if steps == 3 and hvd.rank() == 0 and how == "interrupted while it waits":
            time.sleep(2)
        step()
        steps += 1
        if steps == 1000:
            sys.exit("nobody ended")
except HorovodInternalError as error:
    print(f"after {steps} steps: {error}", flush=True)
    time.sleep(0.5)
