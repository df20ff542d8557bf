"""Four workers that a benchmark simulates in one process are those of real ranks."""

from pathlib import Path

import pytest
import torch
from ranks import RANK, SIZE

RANKS = (2,)  # enough for a mean, a tie and momenta that differ

SAME = ["float16", "signsgd", "signum", "signsgd_one_bit", "signum_one_bit"]
CLOSE = ["float32", "ddp_float16", "powersgd_1", "powersgd_4"]
STEPS = 5  # PowerSGD compresses from the third on


@pytest.fixture
def benchmark(monkeypatch, example):
    data = example("data")
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2]))
    from benchmarks.accuracy import real, simulated, task

    digits = data._digits()
    monkeypatch.setattr(data, "load", lambda *_: digits)
    torch.set_num_threads(1)
    return real, simulated, task.Task(hidden=32, steps=STEPS, batch=16, workers=SIZE)


def test_simulated_workers_take_the_steps_of_real_ranks(benchmark):
    real, simulated, task = benchmark
    start = _flat(task.model(0))
    with real.process_group():
        ends = {}
        for method in SAME + CLOSE:
            training = real.Ranks(task, method, _lr(method))
            for _ in range(STEPS):
                training.step()
            ends[method] = _flat(training.model)
    for method, end in ends.items():
        model, curve = simulated.train(task, simulated.CURVE_OF.get(method, method), _lr(method), 0, every=2)
        assert [step for step, _ in curve] == [2, 4, 5]
        off = (_flat(model) - end).norm() / (end - start).norm()
        assert off < 1e-3, (method, RANK, off)
        assert method in CLOSE or torch.equal(_flat(model), end), method


def _lr(method):
    return 1e-3 if method.startswith("sign") else 0.1


def _flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])
