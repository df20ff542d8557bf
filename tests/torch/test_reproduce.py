"""The fast form of those results of examples/reproduce that need PyTorch, and hostile ranks; see also tests/core."""

import pytest
from ranks import RANK


@pytest.fixture
def script(example):
    """Imports one of the scripts."""
    pytest.importorskip("matplotlib")
    return lambda name: example(f"reproduce/{name}")


def test_counterexamples_are_as_derived(script, tmp_path):
    checks = script("counterexamples").main(["--fast", "--out", str(tmp_path / "drawn.png")])
    assert len(checks) == 12
    assert [c for c in checks if not c.holds] == []
    assert (tmp_path / "drawn.png").exists()


@pytest.mark.ranks(3)  # a majority that outvotes one, and one of two that is hostile
def test_hostile_ranks_are_outvoted_and_averaging_is_not_safe(script, tmp_path):
    checks = script("byzantine_ranks").main(["--fast", "--out", str(tmp_path / "drawn.png")])
    assert len(checks) == 3
    assert [c for c in checks if not c.holds] == []
    assert (tmp_path / "drawn.png").exists() == (RANK == 0)
