"""What `transport="auto"` chooses: the way that costs least by the model."""

import pytest

from horovod_sign.voting.choice import choose


@pytest.mark.parametrize("abstain", [True, False])
@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_few_coordinates_leave_ops_out_and_many_leave_bytes_out(size, abstain):
    assert choose(10_000, size, abstain, can_go_direct=True) == "direct"
    assert choose(10_000, size, abstain, can_go_direct=False) == "counts"
    for can_go_direct in (True, False):
        assert choose(25_000_000, size, abstain, can_go_direct) == "exchange"


def test_where_there_are_no_counts():
    assert choose(10, 32_768, abstain=True, can_go_direct=False) == "exchange"


def test_counts_grow_with_the_ranks():
    """16-bit fields of 128 ranks are not worth an op where the 4-bit ones of 4 are."""
    assert choose(50_000, 4, abstain=True, can_go_direct=False) == "counts"
    assert choose(50_000, 128, abstain=True, can_go_direct=False) == "exchange"
