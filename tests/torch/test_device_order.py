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
from horovod_sign.tensors.devices.resident import Resident
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

    def tally(self, *arguments):
        self.ask(lambda: OPERATIONS.tally(*arguments))

    def compare(self, *arguments):
        self.ask(lambda: OPERATIONS.compare(*arguments))


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


def train_there(seed: int, monkeypatch, without: str = "") -> bool:
    """The same where votes stay on the device, of two ranks that vote alike; each part on a stream of its own."""
    device, numbers = Late(random.Random(seed), without), np.random.default_rng(seed)
    monkeypatch.setattr(staging, "queue_of", lambda of: device)
    bucket = Resident(torch.device("cpu"), WORDS, None, device, 2)
    parameters, expected = [torch.zeros(n) for n in LENGTHS], [np.zeros(n) for n in LENGTHS]
    counts = []

    def turn():
        device.run_some()
        device.current = device.random.choice(["user", "other"])

    for _ in range(3):
        values = [numbers.integers(-1, 2, n).astype(np.float32) for n in LENGTHS]
        gradients = [torch.full((n,), POISON) for n in LENGTHS]
        for gradient, value in zip(gradients, values, strict=True):
            turn()
            device.ask(lambda gradient=gradient, value=value: gradient.copy_(torch.from_numpy(value)))
            bucket.arrived(len(value))
        written_on = device.current
        packed = list(range(device.random.choice([2, 3])))
        bucket.pack("float32", packed, gradients[: len(packed)], False)
        bucket.keep(True)
        for gradient in gradients:  # freed, and in use again for something else
            device.ask(lambda gradient=gradient: gradient.fill_(POISON), written_on)
        turn()
        vote = bucket.exchange(abstain=True)
        ballots = next(vote).buffer
        rank, received = device.random.randrange(2), torch.empty_like(ballots)
        mine, theirs = (ballots.view(2, -1)[each] for each in (rank, 1 - rank))
        device.ask(lambda to=received, mine=mine: to.copy_(mine.repeat(2)))
        decided = vote.send(received).buffer
        of_all = torch.empty(2 * len(decided), dtype=torch.uint8)
        device.ask(lambda all=(of_all, decided, theirs, rank): put_together(*all))
        try:
            vote.send(of_all)
        except StopIteration as stop:
            planes = stop.value
        made_on = device.current
        turn()
        decided, (step,) = bucket.receive(planes, [(0.5, 0.0)])
        bucket.apply("float32", [0, 1, 2], parameters, decided, step)
        counts.append((bucket.compare(planes, 0), values, packed))
        device.ask(lambda planes=planes: [plane.fill_(0x55) for plane in planes.planes], made_on)  # freed
        present = [value if i in packed else 0 * value for i, value in enumerate(values)]
        expected = [x - 0.5 * value for x, value in zip(expected, present, strict=True)]
        bucket.forget()
        turn()
    device.finish()
    right = all(np.array_equal(p, x) for p, x in zip(parameters, expected, strict=True))
    for found, values, packed in counts:
        voted = sum(int(np.abs(values[i]).sum()) for i in packed)
        right &= found.read()[1:4] == (voted, voted, sum(LENGTHS) - voted)
    return right


def put_together(target: torch.Tensor, mine: torch.Tensor, theirs: torch.Tensor, rank: int):
    """What all ranks have decided: of two that vote alike, their ballot, whose sign is clear where it abstains."""
    sign, nonzero = theirs.view(2, -1)
    pieces = [mine, torch.cat([sign & nonzero, nonzero])]
    target.copy_(torch.cat(pieces if rank == 0 else pieces[::-1]))


@pytest.mark.parametrize("trained", [train, train_there])
def test_no_order_of_work_is_wrong(trained, monkeypatch):
    assert all(trained(seed, monkeypatch) for seed in range(1000 if trained is train else 300))


@pytest.mark.parametrize(
    ("trained", "without"),
    [*((train, wait) for wait in ("join", "hold", "copying", "passed")), (train_there, "join"), (train_there, "hold")],
)
def test_each_wait_is_needed(trained, without, monkeypatch):
    assert not all(trained(seed, monkeypatch, without) for seed in range(200))
