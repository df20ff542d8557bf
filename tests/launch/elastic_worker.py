"""A worker of an elastic job: see test_elastic.py, which starts it and changes the hosts.

    horovodrun --gloo ... python elastic_worker.py FOLDER

Of three workers one dies at step 5; later a new one joins; all end with the same parameters.
"""

import os
import sys
import time
from pathlib import Path

import horovod.torch as hvd
import torch

import horovod_sign.torch as hvs

folder, host = Path(sys.argv[1]), os.environ["HOROVOD_HOSTNAME"]
late = (folder / "died").exists()
just_joined = late


def log(text):
    with open(folder / "log", "a") as file:
        file.write(text + "\n")


@hvd.elastic.run
def train(state):
    global just_joined
    momentum = optimizer.vote_state(parameter)["momentum_buffer"].flatten()
    everyone = hvd.allgather(torch.cat([momentum, torch.tensor([float(just_joined)])])[None], name="momenta")
    just_joined = False
    if everyone[:, -1].any():  # a worker has just joined
        old = everyone[everyone[:, -1] == 0][:, :-1]
        new = everyone[everyone[:, -1] == 1][:, :-1]
        fair = torch.allclose(new, old.mean(0), rtol=1e-5) and bool(old.abs().sum())
        log(f"joined size={hvd.size()} the mean of the others: {fair}, of {len(set(map(tuple, old.tolist())))} momenta")
    while state.step < 200:
        if state.step >= 30 and hvd.size() == 3 and (folder / "died").exists():
            break
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(100 * state.step + hvd.rank())
        (parameter * torch.randn(1000, generator=generator)).sum().backward()
        if state.step == 5 and host == "127.0.0.1" and not late:
            (folder / "died").touch()
            os._exit(1)
        optimizer.step()
        state.step += 1
        if hvd.rank() == 0:
            log(f"step {state.step} size={hvd.size()}")
            if state.step == 10:
                (folder / "hosts").write_text("localhost:3\n")
        state.commit()
        time.sleep(0.1)


hvd.init()
torch.manual_seed(hvd.rank())
model = torch.nn.Linear(1000, 1, bias=False)
parameter = model.weight
optimizer = hvs.DistributedOptimizer(hvs.Signum(model.parameters(), 0.01))
state = hvs.elastic.TorchState(model=model, optimizer=optimizer, step=0)
train(state)
values = hvd.allgather_object(parameter.detach().numpy().tobytes(), name="values")
if hvd.rank() == 0:
    log(f"done size={hvd.size()} step={state.step} identical={len(set(values)) == 1}")
