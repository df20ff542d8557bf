"""The order of work on a device, by a simulated one that does everything as late as it may, in any order that it may.

Streams are lists of work that wait for each other by marks, as those of CUDA do. What is not ordered by them runs in
any order, and memory that is given back is overwritten at once.
"""

import contextlib
import random

import numpy as np
import pytest
import torch

from horovod_sign.tensors.devices import staging
from horovod_sign.tensors.devices.operations import Operations
from horovod_sign.tensors.words import Words
from horovod_sign.voting.messages import Planes

LENGTHS = (70, 3, 64)
WORDS = Words.of(LENGTHS)
POISON = 1e30


class Late:
    """A device, and its queue: `horovod_sign.tensors.devices.queues.Queue`.

    Args:
        random: what chooses among work that may run.
        without: a wait that is left out, to see that it is needed.
    """

    def __init__(self, random: random.Random, without: str = ""):
        self.random, self.without = random, without
        self.streams = {name: [] for name in ("user", "other", "copies")}
        self.current = "user"

    def ask(self, work, stream: str | None = None):
        """Work for a stream, or for the current one."""
        self.streams[stream or self.current].append(("work", work))

    def run_some(self, until=None):
        """Runs work that may run: a little, or until a mark has been passed."""
        steps = self.random.randrange(4) if until is None else 10**6
        while steps and not (until is not None and until[0]):
            ready = [name for name, queue in self.streams.items() if queue and self._may_run(queue[0])]
            if not ready:
                assert until is None, "the streams wait for each other"
                return
            kind, what = self.streams[self.random.choice(ready)].pop(0)
            if kind == "work":
                what()
            elif kind == "mark":
                what[0] = True
            steps -= 1

    def finish(self):
        for name in self.streams:
            self.run_some(until=self.mark(name))

    @staticmethod
    def _may_run(item) -> bool:
        kind, what = item
        return kind != "wait" or what[0]

    def _order(self, first: str, then: str):
        """What `then` is asked for from now on waits for what `first` was."""
        if first != then:
            self.streams[then].append(("wait", self.mark(first)))

    def here(self):
        return contextlib.nullcontext()

    def source(self):
        return self.current

    def join(self, sources):
        for stream in sources if self.without != "join" else ():
            self._order(stream, self.current)

    def hold(self, sources):
        for stream in sources if self.without != "hold" else ():
            self._order(self.current, stream)

    @contextlib.contextmanager
    def copying(self):
        if self.without != "copying":
            self._order(self.current, "copies")
        asking, self.current = self.current, "copies"
        yield
        self.current = asking

    def mark(self, stream: str | None = None):
        mark = [False]
        self.streams[stream or self.current].append(("mark", mark))
        return mark

    def passed(self, mark) -> bool:
        self.run_some()
        return mark[0] or self.without == "passed"

    def wait(self, mark):
        self.run_some(until=mark)

    def copy(self, target, source):
        self.ask(lambda: target.copy_(source))

    def pack(self, *arguments):
        self.ask(lambda: OPERATIONS.pack(*arguments))

    def apply(self, *arguments):
        self.ask(lambda: OPERATIONS.apply(*arguments))


OPERATIONS = Operations()


def train(seed: int, monkeypatch, without: str = "") -> bool:
    """Some steps of a bucket; whether each ballot and each parameter is what it must be."""
    device, numbers = Late(random.Random(seed), without), np.random.default_rng(seed)
    monkeypatch.setattr(staging, "queue_of", lambda of: device)
    ballot = Planes(*np.zeros((2, WORDS.plane_bytes), np.uint8))
    bucket = staging.Staging(torch.device("cpu"), WORDS, ballot, device)
    parameters, expected = [torch.zeros(n) for n in LENGTHS], [np.zeros(n) for n in LENGTHS]
    right = True
    for _ in range(3):
        values = [numbers.standard_normal(n).astype(np.float32) for n in LENGTHS]
        gradients = [torch.full((n,), POISON) for n in LENGTHS]
        written_on = []
        for gradient, value in zip(gradients, values, strict=True):
            device.current = device.random.choice(["user", "other"])
            device.ask(lambda gradient=gradient, value=value: gradient.copy_(torch.from_numpy(value)))
            written_on.append(device.current)
            bucket.arrived(len(value))
            device.run_some()
        bucket.pack("float32", [0, 1, 2], gradients, False)
        bucket.send_to_host()
        for gradient, stream in zip(gradients, written_on, strict=True):  # freed, and in use again for something else
            device.ask(lambda gradient=gradient: gradient.fill_(POISON), stream)
        device.current = "user"
        if device.random.random() < 0.2:  # the step is given up
            bucket.forget()
            continue
        while not bucket.packed:
            pass
        bucket.fetch()
        for offset, value in zip(WORDS.offsets, values, strict=True):
            bits = np.unpackbits(ballot.sign[offset:], bitorder="little")[: len(value)]
            right &= bool((bits == (value < 0)).all())
        decided, (step,) = bucket.receive(Planes(ballot.sign), [(0.5, 0.0)])
        bucket.apply("float32", [0, 1, 2], parameters, decided, step)
        expected = [x - 0.5 * np.sign(value) for x, value in zip(expected, values, strict=True)]
    device.finish()
    return right and all(np.array_equal(p, x) for p, x in zip(parameters, expected, strict=True))


def test_no_order_of_work_is_wrong(monkeypatch):
    assert all(train(seed, monkeypatch) for seed in range(1000))


@pytest.mark.parametrize("without", ["join", "hold", "copying", "passed"])
def test_each_wait_is_needed(without, monkeypatch):
    assert not all(train(seed, monkeypatch, without) for seed in range(200))
