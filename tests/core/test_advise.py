"""`python -m horovod_sign advise`: its model is its formulas, and its words follow from the numbers."""

import json
import sys
import types

import numpy as np
import pytest

from horovod_sign import __main__ as main
from horovod_sign.advise import models
from horovod_sign.advise.layout import Layout, bytes_of, grown, messages_of
from horovod_sign.advise.measure import Speeds, Way
from horovod_sign.advise.model import METHODS, predict, sent_bytes
from horovod_sign.advise.verdict import verdict
from horovod_sign.voting import costs

N = 8 * 64 * 100_000
WAYS = {"allreduce": Way(1e-5, 1e-8), "alltoall": Way(2e-5, 2e-8), "allgather": Way(4e-5, 4e-8)}
INSIDE = {name: Way(way.latency / 10, way.per_byte / 10) for name, way in WAYS.items()}
SPEEDS = Speeds(WAYS, INSIDE, WAYS, op=1e-3, vote=1e-9, copy=1e-10)


def test_what_collectives_send():
    """A ring leaves a host once, an alltoall from each of its ranks to all other hosts."""
    hosts = Layout(8, 2, 4)
    assert [messages_of(name, 8) for name in WAYS] == [14, 7, 7]
    assert bytes_of("allreduce", 800, hosts) == 1400 and bytes_of("allgather", 800, hosts) == 700
    assert bytes_of("alltoall", 800, hosts) == 2 * 600 and bytes_of("alltoall", 800, Layout(8, 8, 1)) == 700
    assert grown(hosts, 1024) == Layout(1024, 2, 512) and grown(Layout(8, 8, 1), 2) == Layout(2, 2, 1)
    assert grown(Layout(1, 1, 1), 2) == Layout(2, 1, 2)


def test_predictions_are_their_formulas():
    """4 hosts of one rank: three buckets and more, one ring each, or an alltoall and an allgather."""
    where, plane, buckets = Layout(4, 1, 4), N // 8, 4
    assert buckets == -(-4 * N // 64_000_000)
    fused = 2  # messages of 128 MiB
    floats = fused * 1e-3 + fused * 6e-5 + 1.5 * 4 * N * 1e-8 + 3 * N * 1e-10
    assert predict("float32", N, where, SPEEDS) == pytest.approx(floats)
    one_bit = 2 * buckets * 1e-3 + buckets * 3 * 6e-5 + 0.75 * plane * 6e-8 + N * 1e-9
    assert predict("one bit", N, where, SPEEDS) == pytest.approx(one_bit)
    assert predict("exchange", N, where, SPEEDS) == pytest.approx(one_bit + 0.75 * plane * 4e-8)
    odd = Layout(3, 1, 3)  # no ties, so one plane
    assert predict("exchange", N, odd, SPEEDS) == predict("one bit", N, odd, SPEEDS)
    counts = buckets * 1e-3 + buckets * 6e-5 + 1.5 * N / 2 * 1e-8 + 2 * N * 1e-9
    assert predict("counts", N, where, SPEEDS) == pytest.approx(counts)


def test_small_models_go_past_the_engine():
    assert (
        predict("one bit", 1000, Layout(2, 1, 2), SPEEDS) < SPEEDS.op < predict("counts", 1000, Layout(2, 1, 2), SPEEDS)
    )


def test_hierarchical_votes_are_of_hosts():
    where = Layout(8, 2, 4)
    inside = 4 * 2 * 1e-6 + 4 * N * 1e-9 + 4 * 4e-6 + N / 16 * 4e-9
    expected = 2 * 4 * 1e-3 + inside + predict("exchange", N, Layout(4, 1, 4), SPEEDS) + N * 1e-10
    assert predict("hierarchical", N, where, SPEEDS) == pytest.approx(expected)
    assert sent_bytes("hierarchical", N, where) == sent_bytes("exchange", N, Layout(4, 1, 4))
    for other in (Layout(4, 1, 4), Layout(4, 4, 1)):
        assert predict("hierarchical", N, other, SPEEDS) is None


def test_what_is_not_possible_is_none():
    assert predict("counts", N, Layout(2**15, 1, 2**15), SPEEDS) is None
    assert predict("float32", N, Layout(1, 1, 1), SPEEDS) is None
    assert predict("float32", N, Layout(4, 1, 4), SPEEDS._replace(between=None)) is None
    assert sent_bytes("exchange", N, Layout(4, 1, 4)) == costs.exchange_cost(N, 4, (1, 2)).bytes


def times(float16: float, one_bit: float) -> dict:
    others = {"float32": 2 * float16, "exchange": 1.5 * one_bit, "counts": None, "hierarchical": None}
    return {"float16": float16, "one bit": one_bit, **others}


def test_the_verdict_follows_from_the_times():
    assert verdict(times(0.1, 0.2), 1.0) == [
        "Votes bring no speed here: the fastest, one bit, takes 200 ms, float16 100 ms."
    ]
    unknown = " ".join(verdict(times(0.2, 0.1), None))
    assert "one bit (abstain=False): 100 ms a step instead of 200 ms by float16" in unknown
    assert "if the rest of it takes less than 800 ms;" in unknown  # (0.2 - 0.1) / (0.8 + 0.2) is a tenth
    short, long = (" ".join(verdict(times(0.2, 0.1), step)) for step in (0.1, 10.0))
    assert "1.50 times less time if nothing overlaps, and 2.00 times less if all does" in short
    assert "not worth it" not in short and "Votes are not worth it: they save 1% of a step at most" in long


@pytest.fixture
def alone(monkeypatch):
    """No launcher's variables."""
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "SLURM_STEP_NUM_TASKS", "HOROVOD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_links_that_are_assumed(capsys, alone):
    """As JSON and as text, without a launcher."""
    command = ["advise", "--parameters", "1e6", "--gbits", "0.1", "10", "--latency-us", "50", "--step-ms", "20"]
    assert main.main([*command, "--json"]) == 0
    advice = json.loads(capsys.readouterr().out)
    assert advice["parameters"] == 10**6 and advice["step_s"] == 0.02
    slow, fast = (each["at"]["4"] for each in advice["predictions"])
    assert set(slow) == set(METHODS) and slow["float32"] > 0.9 * 1.5 * 4e6 * 8 / 1e8 > fast["float32"]
    assert list(advice["predictions"][0]["at"]) == [str(2**k) for k in range(1, 11)]
    assert main.main(command) == 0
    text = capsys.readouterr().out
    assert "Assumed: links of 0.1 Gbit/s, 50 us" in text and "The fastest vote is" in text


def test_what_cannot_be_advised_is_one_sentence(capsys, alone):
    for arguments, words in (
        (["--parameters", "10"], "one rank has no link to measure"),
        (["--model", "nowhere", "--gbits", "1"], "must be package.module:function"),
        (["--model", "json:nothing", "--gbits", "1"], "nothing"),
        (["--model", "json:JSONDecoder", "--gbits", "1"], "no model of PyTorch or Keras"),
    ):
        assert main.main(["advise", *arguments]) == 2
        assert words in capsys.readouterr().err
    for arguments in ([], ["--parameters", "0"], ["--parameters", "1", "--model", "a:b"]):
        with pytest.raises(SystemExit):
            main.main(["advise", *arguments])


def test_parameters_of_a_model_are_counted(monkeypatch):
    """Those that are trained; a backward is timed if there is a loss. (Stand-ins: no framework here.)"""

    class Parameter:
        def __init__(self, count, requires_grad=True):
            self.numel, self.requires_grad = lambda: count, requires_grad

    class Loss:
        is_cuda, passes = False, 0

        def backward(self):
            Loss.passes += 1

    torch_like = types.SimpleNamespace(parameters=lambda: [Parameter(6), Parameter(4), Parameter(5, False)])
    keras_like = types.SimpleNamespace(trainable_variables=[np.zeros((2, 3)), np.zeros(4), np.zeros(())])
    module = types.ModuleType("of_the_user")
    module.alone, module.keras, module.timed = lambda: torch_like, lambda: keras_like, lambda: (torch_like, Loss)
    monkeypatch.setitem(sys.modules, "of_the_user", module)
    assert models.inspect("of_the_user:alone") == (10, None)
    assert models.inspect("of_the_user:keras") == (11, None)
    count, seconds = models.inspect("of_the_user:timed")
    assert count == 10 and seconds >= 0 and Loss.passes == 4
