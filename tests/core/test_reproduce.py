"""The fast form of each result of examples/reproduce: measured as derived. NumPy alone; see also tests/torch."""

import numpy as np
import pytest


@pytest.fixture
def script(example):
    """Imports one of the scripts."""
    pytest.importorskip("matplotlib")
    return lambda name: example(f"reproduce/{name}")


@pytest.mark.parametrize(
    "name",
    [
        "toy_problem",
        "more_voters",
        "error_probability",
        "byzantine",
        "ties_and_zeros",
        "rates",
        "sorted_labels",
        "learning_rates",
    ],
)
def test_measured_is_as_derived(script, name, tmp_path):
    checks = script(name).main(["--fast", "--out", str(tmp_path / "drawn.png")])
    assert len(checks) >= 3
    assert [c for c in checks if not c.holds] == []
    assert (tmp_path / "drawn.png").read_bytes()[:4] == b"\x89PNG"


def test_what_is_not_as_derived_is_said(script, capsys, tmp_path):
    reporting = script("reporting")
    checks = [reporting.near("a", 1.0, 1.2, 0.1), reporting.within("b", 2.0, 2.1, 10), reporting.at_most("c", 3.0, 3.1)]
    assert [c.holds for c in checks] == [False, True, False]
    assert not reporting.near("d", 1.0, float("nan"), 0.1).holds
    figure, _ = reporting.panels(1)
    reporting.finish(checks, figure, tmp_path / "x.png")
    printed = capsys.readouterr().out
    assert printed.count("NOT SO") == 2 and "1 of 3 as expected; 2 NOT" in printed
    assert reporting.exit_status(checks) == 1 and reporting.exit_status(checks[1:2]) == 0


def test_odds_of_a_vote_by_counting_all_ballots(script):
    """Of 3 honest voters and 2 hostile ones: each of the 32 ways to vote, one by one."""
    p, plus, minus = 0.7, 0.0, 0.0
    for ballots in np.ndindex(2, 2, 2, 2, 2):
        honest, hostile = np.array(ballots[:3]), np.array(ballots[3:])
        probability = np.prod(np.where(honest, p, 1 - p)) * np.prod(np.where(hostile, 1 - p, p))
        plus, minus = plus + probability * (sum(ballots) > 2), minus + probability * (sum(ballots) <= 2)
    got = script("chains").vote(p, 5, hostile=2)
    np.testing.assert_allclose([float(g) for g in got], [plus, minus])
    even = script("chains").vote(p, 4)
    np.testing.assert_allclose(1 - even[0] - even[1], 6 * p**2 * (1 - p) ** 2)
    np.testing.assert_allclose(script("chains").vote(p, 4, one_bit=True)[0], 1 - even[1])


def test_voters_with_momenta_vote_as_the_rule_says(script):
    """Two steps of warm-up, then its own momentum, for each of three voters."""
    rules = script("horovod_sign.rules")
    rng = np.random.default_rng(0)
    voters = script("ballots").Voters(rules.Interpolation(0.5, 0.9, warmup_steps=2), 3, 70)
    momenta = np.zeros((3, 70))
    for step in range(5):
        gradients = rng.standard_normal((3, 70)).astype(np.float32)
        voted = gradients if step < 2 else 0.5 * momenta + 0.5 * gradients
        momenta = 0.9 * momenta + 0.1 * gradients
        np.testing.assert_array_equal(voters.vote(gradients), np.sign(np.sign(voted).sum(0)))


def test_gradients_of_the_small_network(script):
    """Beside differences, for each of two workers."""
    net, rng = script("training").Network(0), np.random.default_rng(0)
    net.flat = net.flat.astype(np.float64)
    x, y = rng.random((2, 5, 196)), rng.integers(10, size=(2, 5))
    gradients = net.gradients(x, y)

    def loss(worker):
        outputs = net.outputs(x[worker])[1]
        return (np.log(np.exp(outputs).sum(1)) - outputs[np.arange(5), y[worker]]).mean()

    for i in [5, 3000, -700, -300, -11, -1]:
        for worker in (0, 1):
            net.flat[i] += 1e-6
            above = loss(worker)
            net.flat[i] -= 2e-6
            slope = (above - loss(worker)) / 2e-6
            net.flat[i] += 1e-6
            np.testing.assert_allclose(gradients[worker, i], slope, atol=1e-7)
