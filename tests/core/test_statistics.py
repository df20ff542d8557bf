"""What is counted about votes, on planes made by NumPy: no ranks and no framework."""

import math
import warnings

import numpy as np
import oracle
import pytest

from horovod_sign.statistics import MARGIN, PATIENCE, Monitor, chance_agreement, summarise, systematic_disagreement
from horovod_sign.voting.messages import Planes

WORD = 64


def planes(x: np.ndarray) -> Planes:
    """Signs in whole words, whose padding does not abstain."""
    padding = np.ones(-len(x) % WORD)
    bits = np.concatenate([np.nan_to_num(x), padding])
    nonzero = np.packbits(bits != 0, bitorder="little")
    return Planes(np.packbits(bits < 0, bitorder="little"), None if (bits != 0).all() else nonzero)


def count(monitor: Monitor, ballot: np.ndarray, vote: np.ndarray):
    abstained = int((np.nan_to_num(ballot) == 0).sum())
    monitor.count(planes(ballot), planes(vote), len(ballot), abstained, int(np.isnan(ballot).sum()))


def step(monitor: Monitor, share: float, n: int = 100):
    """A step in which so large a share of the coordinates agrees with the vote."""
    monitor.begin()
    count(monitor, np.where(np.arange(n) < round(share * n), 1.0, -1.0), np.ones(n))
    monitor.end(0)


def told(monitor: Monitor, shares) -> list[str]:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for share in shares:
            step(monitor, share)
    return [str(each.message) for each in warned]


def test_counts_of_several_votes_a_step_are_those_of_numpy():
    monitor, total = Monitor("rank 0", 3, abstain=True), 0
    for number in range(1, 4):
        ballots = [oracle.gradients(number, n, np.float32) for n in (1, 64, 65, 500)]
        votes = [np.sign(np.nan_to_num(oracle.gradients(9 + number, len(x), np.float32))) for x in ballots]
        monitor.begin()
        for ballot, vote in zip(ballots, votes, strict=True):
            count(monitor, ballot, vote)
        monitor.end(number)
        own, vote = np.sign(np.nan_to_num(np.concatenate(ballots))), np.concatenate(votes)
        both = (own != 0) & (vote != 0)
        nans = int(np.isnan(np.concatenate(ballots)).sum())
        total += nans
        got = monitor.latest
        assert (got.step, got.coordinates, got.nans, got.total_nans) == (number, 630, nans, total)
        assert (got.abstained, got.ties) == ((own == 0).mean(), (vote == 0).mean())
        assert got.agreement == (own == vote)[both].mean()
        assert (got.bytes_sent, got.bytes_float32) == (number, 2 * 2 * 4 * 630 // 3)


def test_one_coordinate_of_one_rank_alone():
    got = summarise(1, 0, 0, 1, 1, coordinates=1)
    assert (got.abstained, got.ties, got.bytes_float32) == (1.0, 1.0, 0)
    assert math.isnan(got.agreement)
    assert summarise(2, 0, 0, 0, 0, coordinates=0).abstained == 0.0


def test_the_mean_agreement_runs_over_the_last_hundred_steps_or_so():
    monitor = Monitor("rank 0", 2, abstain=True)
    shares = [0.5] * 40 + [1.0] * 60 + [0.0] * 500
    expected = math.nan
    for number, share in enumerate(shares, 1):
        step(monitor, share)
        expected = share if number == 1 else expected + (share - expected) / min(number, 100)
        assert monitor.latest.mean_agreement == pytest.approx(expected)
        if number == 100:
            assert expected == pytest.approx(0.8)
    assert monitor.latest.mean_agreement < 0.01  # what was long ago is forgotten


def test_steps_without_any_agreement_do_not_count():
    monitor = Monitor("rank 0", 3, abstain=True)
    step(monitor, 1.0)
    monitor.begin()
    count(monitor, np.zeros(5), np.ones(5))
    monitor.end(0)
    assert math.isnan(monitor.latest.agreement)
    assert monitor.latest.mean_agreement == 1.0
    step(monitor, 0.5)
    assert monitor.latest.mean_agreement == 0.75


def test_who_disagrees_is_told_once_after_a_hundred_steps():
    monitor = Monitor("rank 7", 5, abstain=True)
    assert told(monitor, [0.0] * (PATIENCE - 1)) == []
    (message,) = told(monitor, [0.0] * 300)
    assert message.startswith("rank 7 systematically disagrees with the others: in the last 100 steps it agreed")
    assert f"{chance_agreement(5):.1%} at 5 ranks" in message
    assert told(Monitor("rank 0", 5, abstain=True), [chance_agreement(5) - MARGIN + 0.01] * 300) == []
    assert len(told(Monitor("rank 0", 5, abstain=True), [chance_agreement(5) - MARGIN - 0.01] * 300)) == 1


@pytest.mark.parametrize(("size", "reported"), [(1, False), (2, False), (3, True)])
def test_of_two_nobody_can_tell_which_is_wrong(size, reported):
    assert bool(told(Monitor("rank 0", size, abstain=True), [0.0] * 150)) == reported


def test_who_was_honest_for_long_is_reported_when_it_no_longer_is():
    assert len(told(Monitor("rank 0", 3, abstain=True), [1.0] * 2000 + [0.0] * 200)) == 1


def test_ties_that_are_plus_one_lower_what_chance_gives():
    share = (chance_agreement(4) + chance_agreement(4, abstain=False)) / 2 - MARGIN
    assert chance_agreement(4, abstain=False) + 0.05 < chance_agreement(4)
    assert told(Monitor("rank 0", 4, abstain=False), [share] * 150) == []
    assert len(told(Monitor("rank 0", 4, abstain=True), [share] * 150)) == 1


def test_after_a_restart_it_counts_among_the_new_ranks():
    """As in an elastic job: the name and number of ranks of now, a mean that starts anew, steps that go on."""
    monitor = Monitor("rank 3", 4, abstain=True)
    for _ in range(PATIENCE - 1):
        step(monitor, 0.0)
    monitor.restart("rank 1", 3)
    assert told(monitor, [1.0]) == []
    assert monitor.latest.mean_agreement == 1.0
    assert monitor.latest.step == PATIENCE
    assert monitor.latest.bytes_float32 == 2 * 2 * 4 * 100 // 3
    (message,) = told(monitor, [0.0] * 300)
    assert message.startswith("rank 1 ")
    assert f"{chance_agreement(3):.1%} at 3 ranks" in message
    monitor = Monitor("rank 1", 3, abstain=True)
    monitor.restart("rank 1", 2)
    assert told(monitor, [0.0] * 150) == []


def test_what_is_reported_hangs_on_a_hundred_measured_steps():
    assert systematic_disagreement("rank 0", 3, True, 99, 0.0) is None
    assert systematic_disagreement("rank 0", 3, True, 100, 0.0) is not None
    assert systematic_disagreement("rank 0", 3, True, 100, math.nan) is None


def test_scalars_leave_out_what_is_not_a_number():
    class Writer(dict):
        def add_scalar(self, tag, value, step):
            self[tag] = value, step

    monitor, writer = Monitor("rank 0", 2, abstain=True), Writer()
    monitor.latest.add_scalars(writer)
    assert set(writer) == {"votes/coordinates", "votes/nans", "votes/total_nans", "votes/abstained", "votes/ties"} | {
        "votes/bytes_sent",
        "votes/bytes_float32",
    }
    step(monitor, 0.75)
    monitor.latest.add_scalars(writer, step=0, prefix="")
    assert writer["agreement"] == writer["mean_agreement"] == (0.75, 0)
