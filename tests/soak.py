"""Trains for many steps while faults strike random ranks at random steps: started by ci/soak.sh.

Each rank draws its own faults, so that the ranks never agree on what goes wrong; what all must do together
(checkpoints, unfreezing) is drawn from a seed that they share. Exits with an error unless all replicas are the same bit
for bit at the end, all scales and momenta are finite, and memory has stayed flat.
"""

import io
import math
import random
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import horovod.torch as hvd
import torch
from mpi4py import MPI

import horovod_sign.torch as hvs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))
import torch_tasks as tasks
from progress import Progress

from benchmarks import figures

FAULTS = ["nan", "inf", "overflow", "no gradient", "flipped", "constant", "silent", "late", "unused"]
SHARED = ["checkpoint", "freeze", "unfreeze", "synchronize", "empty step"]
GROWTH_LIMIT_MB = 20


class Soak:
    """The training, one `step` at a time, and a count of the faults."""

    def __init__(self):
        self.net = tasks.model()
        # A tenth of the steps overflow on a rank, and halve its scale, which would be 0 in the end if it grew slowly.
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=6)
        scaled = hvs.Signum(list(self.net.parameters())[:4], 0.001, weight_decay=0.01, warmup=True)
        self.optimizers = [
            hvs.DistributedOptimizer(scaled, self.net.named_parameters(), grad_scaler=self.scaler),
            hvs.DistributedOptimizer(
                torch.optim.Adam(list(self.net.parameters())[4:], 0.001),
                self.net.named_parameters(),
                compression=hvs.Compression.signum(0.9),
                grad_scaler=self.scaler,
                transport="counts",
                bucket_cap_mb=0.0001,
            ),
        ]
        # A second model without a scaler, so that its votes start during backward.
        self.eager_net = tasks.model(2)
        self.eager = hvs.DistributedOptimizer(hvs.Signum(self.eager_net.parameters(), 0.001), bucket_cap_mb=0.001)
        self.own, self.shared = random.Random(hvd.rank()), random.Random(1234)
        self.struck = Counter()

    def step(self, number: int):
        fault = self.own.choice(FAULTS) if self.own.random() < 0.3 else None
        together = self.shared.choice(SHARED) if self.shared.random() < 0.1 else None
        self.struck.update(each for each in (fault, together) if each)
        if together == "checkpoint":
            self.reload()
        if together in ("freeze", "unfreeze"):
            for net in (self.net, self.eager_net):
                net[3].requires_grad_(together == "unfreeze")
        for net, optimizers in ((self.net, self.optimizers), (self.eager_net, [self.eager])):
            for optimizer in optimizers:
                optimizer.zero_grad()
            if fault == "late":
                time.sleep(0.01)
            if fault != "no gradient" and together != "empty step":
                self.backward(net, optimizers, number, fault)
            for optimizer in optimizers:
                self.take_step(optimizer, net, together)
        self.scaler.update()

    def backward(self, net, optimizers, number, fault):
        victim = self.own.choice([p for p in net.parameters() if p.requires_grad])
        kind = {"overflow": "inf"}.get(fault, fault)
        handles = hvs.adversaries.corrupt([victim], kind) if kind in hvs.adversaries.KINDS else []
        if fault == "unused":
            handles.append(net[4].register_forward_hook(lambda module, inputs, output: output.detach()))
        loss = tasks.loss(net, number)
        (loss if net is self.eager_net else self.scaler.scale(loss)).backward()
        for handle in handles:
            handle.remove()

    def take_step(self, optimizer, net, together):
        step = optimizer.step if net is self.eager_net else lambda: self.scaler.step(optimizer)
        if together != "synchronize":
            step()
            return
        optimizer.synchronize()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        with optimizer.skip_synchronize():
            step()

    def reload(self):
        """All momenta through one file."""
        for optimizer in (*self.optimizers, self.eager):
            file = io.BytesIO()
            torch.save(hvs.gather_state_dict(optimizer), file)
            content = hvd.broadcast_object(file.getvalue(), 0, name="soak.file")
            optimizer.load_state_dict(torch.load(io.BytesIO(content)))

    def check(self):
        tasks.assert_replicas_identical(self.net)
        tasks.assert_replicas_identical(self.eager_net)
        assert 0 < self.scaler.get_scale() < float("inf")
        for optimizer in (*self.optimizers, self.eager):
            for p in optimizer.param_groups[0]["params"]:
                momentum = optimizer.vote_state(p).get("momentum_buffer", torch.zeros(()))
                assert torch.isfinite(momentum).all() and torch.isfinite(p).all(), "not finite"


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


def main(steps: int):
    hvd.init()
    warnings.simplefilter("ignore")
    soak, memory, started = Soak(), math.nan, time.perf_counter()
    progress = Progress(range(steps), "soak", shown=hvd.rank() == 0, lines=False)
    for number in progress:
        soak.step(number)
        if number % 100 == 99:
            soak.check()
            memory = resident_mb() if number // 100 == min(2, steps // 200) else memory
            if hvd.rank() == 0 and progress.in_terminal:
                progress.note(f"{resident_mb():.1f} MB")
            elif hvd.rank() == 0:
                passed = time.perf_counter() - started
                left = passed / (number + 1) * (steps - number - 1)
                print(f"step {number + 1}: {resident_mb():.1f} MB, {passed:.0f} s, {left:.0f} s left", flush=True)
    soak.check()
    grown = MPI.COMM_WORLD.allgather((memory, resident_mb()))
    struck = sum(MPI.COMM_WORLD.allgather(soak.struck), Counter())
    if hvd.rank() == 0:
        print(f"{steps} steps on {hvd.size()} ranks, {sum(struck[each] for each in FAULTS)} faults: {dict(struck)}")
        print("memory of each rank, MB, early and at the end:", [f"{a:.1f} {b:.1f}" for a, b in grown])
        print("replicas are bit-identical", flush=True)
    assert not any(end - early > GROWTH_LIMIT_MB for early, end in grown), "memory has grown"
    if hvd.rank() == 0:
        faults, (early, end) = sum(struck[each] for each in FAULTS), max(grown)
        found = (
            f"{steps:,} steps on {hvd.size()} ranks, {faults:,} faults of {len(FAULTS)} kinds: all replicas "
            "bit-identical at the end, all scales and momenta finite, memory of the largest rank "
            f"{early:.1f} MB early on and {end:.1f} MB at the end"
        )
        figures.record("soak", found)


if __name__ == "__main__":
    main(int(sys.argv[1]))
