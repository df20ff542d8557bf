"""The benchmark's cost model: its fit finds the constants that made the times; what a link that is shared carries."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "cost_model.py"
spec = importlib.util.spec_from_file_location("cost_model", PATH)
model = importlib.util.module_from_spec(spec)
spec.loader.exec_module(model)

METHODS = ("float32", "float16", "byte_allgather", "bit_allgather", "counts", "exchange")
CONSTANTS = {
    "tau": 1e-3,
    "alpha TCP": 5e-5,
    "eta TCP": 1e-9,
    "alpha memory": 1e-6,
    "eta memory": 3e-10,
    "beta": 1.05,
    "gamma float16": 1e-9,
    "gamma byte tally": 4e-10,
    "gamma counts": 6e-10,
    "gamma pass": 5e-10,
    "gamma tally": 1e-10,
}


def settings():
    return [
        model.Setting("vote", method, int(n), ranks, rate=rate, crowd=ranks / 2, burst=1e6)
        for method in METHODS
        for n in (1e4, 1e6, 25.6e6)
        for ranks in (2, 4, 8)
        for rate in (None, 125e6, 1.25e9)
    ]


def test_fit_finds_the_constants():
    times = [model.seconds(CONSTANTS, s) for s in settings()]
    fitted = model.fit(settings(), times)
    assert fitted.constants == pytest.approx(CONSTANTS, rel=1e-4)
    assert abs(fitted.residuals).max() < 1e-6


def test_the_model_is_its_formula():
    """By hand, for 4 ranks on 2 cores: planes of 32,000 bytes in chunks of 8,000."""
    n = 8 * 32_000
    names = ("tau", "alpha TCP", "eta TCP", "alpha memory", "eta memory", "gamma pass", "gamma tally", "beta")
    constants = dict(zip(names, (1e-3, 2e-5, 3e-10, 4e-6, 5e-10, 6e-10, 7e-10, 1.1), strict=True))
    votes = model.Setting("vote", "exchange", n, 4, rate=125e6, crowd=2.0, burst=1000.0)
    sent = 3 * (1 + 8000) + 3 * (1 + 8000)
    shared = 2 * (2 * 1e-3 + 6 * 2e-5 + sent * 3e-10 + n * (6e-10 + 7e-10))
    assert model.seconds(constants, votes) == pytest.approx(shared + (sent - 1000) * 1.1 / 125e6)
    floats = model.Setting("vote", "float32", n, 4)
    assert model.seconds(constants, floats) == pytest.approx(1e-3 + 6 * 4e-6 + 6 * n * 5e-10 + n * 6e-10)


def test_fit_of_noisy_times_has_no_negative_constants():
    random = np.random.default_rng(0)
    times = [model.seconds(CONSTANTS, s) * random.uniform(0.7, 1.4) for s in settings()]
    fitted = model.fit(settings(), times)
    assert min(fitted.constants.values()) >= 0
    assert fitted.constants["beta"] == pytest.approx(1.05, rel=0.3)
    assert np.sqrt(np.mean(fitted.residuals**2)) < 0.3


def test_too_few_points():
    with pytest.raises(ValueError, match="too few"):
        model.fit(settings()[:3], [1.0] * 3)


def test_steps_count_what_they_add_to_a_backward():
    common = {"kind": "step", "rate": "1gbit", "ranks": 4, "coordinates": 1000}
    times = {"backward": 100.0, "float32": 150.0, "signsgd": 99.0}
    records = [{**common, "method": method, "ms": ms} for method, ms in times.items()]
    assert [(r["method"], t) for r, t in model.measured(records)] == [("float32", pytest.approx(0.05))]


def test_results_of_another_algorithm_are_left_out():
    """Which a link shows by carrying much more than a ring would."""
    common = {"kind": "vote", "rate": "1gbit", "method": "float32", "coordinates": 10**7, "ms": 100.0}
    ring = {**common, "ranks": 3, "bytes": 2 * 2 / 3 * 4e7}
    other = {**ring, "bytes": 1.9 * ring["bytes"]}
    unknown = {**ring, "bytes": 0, "rate": "shared memory"}
    assert [r for r, _ in model.measured([ring, other, unknown])] == [ring, unknown]


def test_rates():
    assert model.bytes_per_second("1gbit") == 125e6
    assert model.bytes_per_second("100mbit") == 12.5e6
    assert model.bytes_per_second("shared memory") is None


def test_a_link_shared_by_the_ranks_of_a_host():
    """The ring's bytes leave a host once. All its ranks' ballots leave it: (1 + g) n/8 where one rank sends 2 n/8."""
    n = 64 * 4096 * 100
    floats, votes = (model.Setting("vote", method, n, 4096, rate=125e6) for method in ("float32", "exchange"))
    assert model.link_bytes(floats._replace(ranks_per_link=8)) == model.link_bytes(floats)
    assert model.link_bytes(votes) == pytest.approx(2 * n / 8, rel=2e-2)
    assert model.link_bytes(votes._replace(ranks_per_link=8)) == pytest.approx(9 * n / 8, rel=1e-2)


def test_scale_fits_predicts_and_draws(tmp_path):
    """`scale` on results that the model made: it finds the constants, and more than one rank a host hurts the flat."""
    rates = {None: "shared memory", 125e6: "1gbit", 1.25e9: "10gbit"}
    records = [
        {
            "kind": s.kind,
            "method": s.method,
            "rate": rates[s.rate],
            "ranks": s.ranks,
            "coordinates": s.n,
            "abstain": False,
            "ms": 1e3 * model.seconds(CONSTANTS, s),
        }
        for s in settings()
    ]
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(r) + "\n" for r in records))
    program = [sys.executable, "-m", "benchmarks", "scale", results, "--gbits", "1"]
    finished = subprocess.run(program, cwd=PATH.parents[1], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    found = json.loads((tmp_path / "scale.json").read_text())
    assert found["constants_s"] == pytest.approx(CONSTANTS, rel=1e-3)
    assert all(point["model_s"] == pytest.approx(point["measured_s"], rel=1e-3) for point in found["fit"])
    alone, shared = (panel["seconds"] for panel in found["predictions"])
    assert alone["ranks"][-1] == shared["ranks"][-1] == 4096
    assert alone["exchange, flat"][-1] < shared["exchange, flat"][-1]
    assert shared["hierarchical"][-1] < shared["exchange, flat"][-1] < shared["float32, ring"][-1]
    assert (tmp_path / "scale.png").stat().st_size and (tmp_path / "fit.png").stat().st_size
