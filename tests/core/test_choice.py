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


# With 2 ranks P = n/8 bytes are in a plane, and an exchange sends P + 2 of them, or 1.5 P where votes can tie (a second
# plane of the results); counts take 4 bits a coordinate, 4 P. An op is worth 100,000 bytes: 0.8 ms at 125 MB/s.
@pytest.mark.parametrize(
    ("abstain", "can_go_direct", "most", "way", "beyond"),
    [
        (False, True, 8 * 200_000, "direct", "exchange"),  # two ops: P < 200,000
        (True, True, 8 * 200_000 / 1.5, "direct", "exchange"),
        (False, False, 8 * 100_000 / 3, "counts", "exchange"),  # one op: 4 P - P < 100,000
        (True, False, 8 * 100_000 / 2.5, "counts", "exchange"),
    ],
)
def test_where_one_way_gives_way_to_another(abstain, can_go_direct, most, way, beyond):
    assert choose(int(0.999 * most), 2, abstain, can_go_direct) == way
    assert choose(int(1.001 * most), 2, abstain, can_go_direct) == beyond


@pytest.mark.parametrize("can_go_direct", [True, False])
def test_one_that_votes_alone_encodes_nothing(can_go_direct):
    assert choose(10, 1, abstain=True, can_go_direct=can_go_direct) == "exchange"
