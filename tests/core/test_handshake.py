"""All ranks hear of the first item that differs, and of who has what; simulated ranks, in step."""

import numpy as np
import pytest

from horovod_sign.voting.handshake import agree, argument


def together(of_all, errors=None, numbers=None):
    """What each rank ends with: a number, or an error. They have the same requests, or this fails."""
    size = len(of_all)
    running = [
        agree("it", items, (errors or {}).get(rank), size, (numbers or [0] * size)[rank])
        for rank, items in enumerate(of_all)
    ]
    result, ends = None, []
    while len(ends) < size:
        requests = []
        for each in running:
            try:
                requests.append(each.send(result))
            except StopIteration as stop:
                ends.append(stop.value)
            except (TypeError, ValueError) as error:
                ends.append(error)
        assert len(requests) in (0, size), "some ranks wait for others that are done"
        if requests:
            assert all(request.buffer.flags.writeable for request in requests)  # or torch warns of it
            assert not requests[0].alike or len({len(request.buffer) for request in requests}) == 1
            result = np.concatenate([request.buffer for request in requests])
    return ends


pytestmark = pytest.mark.fault("differ")

ABSTAIN = argument("abstain", False)
ALIKE = [argument("abstain", True), ("variable 0", "kernel (3, 4)" * 100)]


def test_all_agree_on_the_largest_number():
    assert together([ALIKE] * 3, numbers=[1, 5, 0]) == [5] * 3


@pytest.mark.parametrize(
    ("of_all", "words"),
    [
        ([ALIKE, [ABSTAIN, ALIKE[1]], ALIKE], "argument abstain is True on ranks 0, 2 and False on rank 1:"),
        ([ALIKE, ALIKE[:1], ALIKE[:1]], "(3, 4) on rank 0 and nothing more on ranks 1, 2:"),
        ([ALIKE, [ALIKE[0], ("variable 0", ALIKE[1][1] + "x")]], "x on rank 1:"),
        ([ALIKE, [("what left", "some"), *ALIKE]], "True on rank 0 and not there, but what left is some on rank 1:"),
        ([[("shape", str(n))] for n in range(6)], "2 on rank 2 and 3 on rank 3 and 2 others"),
        ([[("name", "\u2603")], []], "name is \u2603 on rank 0 and nothing more on rank 1:"),
    ],
)
def test_the_first_difference_is_told_to_all(of_all, words):
    ends = together(of_all)
    assert {type(end) for end in ends} == {ValueError} and len({str(end) for end in ends}) == 1
    assert words in str(ends[0]) and str(ends[0]).startswith("it: all ranks must bring the same")


def test_an_error_of_one_rank_is_told_to_all_without_more_ado():
    ends = together([ALIKE, [], ALIKE[:1]], {1: TypeError("no floats")})
    assert [str(end) for end in ends] == ["it: rank 1 cannot vote: no floats"] * 3 and type(ends[2]) is TypeError
