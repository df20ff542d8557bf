"""What happened in the votes of a step, seen from one rank: abstentions, ties, NaN, agreement, bytes.

All of it is counted on bit planes (by popcount), locally: no rank sends anything for it.
"""

import math
import warnings
from typing import Any, NamedTuple, Protocol

from horovod_sign.algebra import kernels
from horovod_sign.voting.messages import Planes

# A rank is reported when its mean agreement over so many steps is so far below what random votes would give.
PATIENCE, MARGIN = 100, 0.05


class VoteStatistics(NamedTuple):
    """The votes of one step on one rank, in shares of its coordinates.

    Attributes:
        step: how many steps have been voted on.
        coordinates: voted on in the step, n.
        nans: coordinates that abstained because they were NaN on this rank (0 with `abstain=False`, where they are +1).
        total_nans: the same, in all steps so far.
        abstained: share of coordinates on which this rank abstained: zero, NaN, or without a gradient.
        ties: share on which the vote is 0.
        agreement: where this rank voted and the vote is not 0, the share on which they are the same; NaN if nowhere.
        mean_agreement: its running mean over the last 100 steps or so.
        bytes_sent: by this rank to others.
        bytes_float32: what a ring allreduce of float32 gradients would have sent, 2 (M - 1) / M * 4 n.
    """

    step: int = 0
    coordinates: int = 0
    nans: int = 0
    total_nans: int = 0
    abstained: float = 0.0
    ties: float = 0.0
    agreement: float = math.nan
    mean_agreement: float = math.nan
    bytes_sent: int = 0
    bytes_float32: int = 0

    def add_scalars(self, writer: Any, step: int | None = None, prefix: str = "votes/") -> None:
        """Writes all of it as scalars.

        Args:
            writer: a TensorBoard `SummaryWriter`, or anything with its `add_scalar(tag, value, step)`.
            step: default: the number of the vote.
            prefix: of the tags.
        """
        for tag, value in self._asdict().items():
            if tag != "step" and not math.isnan(value):
                writer.add_scalar(prefix + tag, value, self.step if step is None else step)


def summarise(size: int, both: int, alike: int, abstained: int, ties: int, **others: Any) -> VoteStatistics:
    """The statistics of counted coordinates.

    Args:
        size: how many ranks voted.
        both, alike: where this rank voted and the vote is not 0; and of these, where they are the same.
        abstained, ties: where this rank abstained, and where the vote is 0.
        **others: further fields of `VoteStatistics`.
    """
    n = others["coordinates"]
    return VoteStatistics(
        abstained=abstained / max(n, 1),
        ties=ties / max(n, 1),
        agreement=alike / both if both else math.nan,
        bytes_float32=2 * (size - 1) * 4 * n // size,
        **others,
    )


class Voted(Protocol):
    """A bucket, as a vote on it is counted.

    Attributes:
        ballot: this rank's.
        coordinates: in it, without padding.
        zeros, nans: how many of them abstain since they are zero, or without a gradient, or NaN.
    """

    ballot: Planes
    coordinates: int
    zeros: int
    nans: int

    def nan_report(self, voter: str) -> str | None:
        """What to tell the user of the first gradient with NaN; None: there is none any more."""


class Monitor:
    """Counts the votes of each step, and reports a rank that disagrees systematically, once, on that rank.

    Args:
        voter: who votes here, for reports: "rank 3".
        size: how many vote.
        abstain: whether ties are 0; else they are +1.
    """

    def __init__(self, voter: str, size: int, *, abstain: bool) -> None:
        self.latest = VoteStatistics()
        self._voter, self._size, self._abstain = voter, size, abstain
        self._mean, self._measured, self._reported, self._nan_told = math.nan, 0, False, False
        self.begin()

    def restart(self, voter: str, size: int) -> None:
        """Goes on among other ranks."""
        self._voter, self._size = voter, size
        self._mean, self._measured = math.nan, 0

    def begin(self) -> None:
        """A new step."""
        self._coordinates = self._abstained = self._nans = self._ties = self._both = self._alike = 0

    def count(self, ballot: Planes, decided: Planes, coordinates: int, abstained: int, nans: int) -> None:
        """One vote of the step.

        Args:
            ballot, decided: what this rank voted, and the vote. Padding must not abstain.
            coordinates: in the planes, without padding.
            abstained, nans: coordinates of the ballot that abstain, and how many of them because of NaN.
        """
        bits = 8 * len(ballot.sign)
        padding = bits - coordinates
        alike, both = kernels().agreement(*ballot, *decided, bits), bits
        if ballot.nonzero is not None or decided.nonzero is not None:
            both = kernels().agreement(ballot.sign, ballot.nonzero, ballot.sign, decided.nonzero, bits)
        if decided.nonzero is not None:
            self._ties += bits - kernels().agreement(*[decided.nonzero] * 4, bits)  # type: ignore[call-arg, arg-type]
        self._add(coordinates, both - padding, alike - padding, abstained, nans)

    def _add(self, coordinates: int, both: int, alike: int, abstained: int, nans: int) -> None:
        self._coordinates += coordinates
        self._both += both
        self._alike += alike
        self._abstained += abstained
        self._nans += nans

    def count_vote(self, bucket: Voted, decided: Planes) -> None:
        """One vote of the step, on a bucket that still has its ballot."""
        self.count(bucket.ballot, decided, bucket.coordinates, bucket.zeros + bucket.nans, bucket.nans)

    def tell_nan(self, bucket: Voted) -> None:
        """Tells the user, once, of the first gradient of a bucket that has NaN, which are still there."""
        if bucket.nans and not self._nan_told:
            report = bucket.nan_report(self._voter)
            if report is not None:
                self._tell(report)

    def _tell(self, report: str) -> None:
        self._nan_told = True
        warnings.warn(report, RuntimeWarning, stacklevel=3)

    def end(self, bytes_sent: int) -> None:
        """The step is over."""
        latest = summarise(
            self._size,
            self._both,
            self._alike,
            self._abstained,
            self._ties,
            step=self.latest.step + 1,
            coordinates=self._coordinates,
            nans=self._nans,
            total_nans=self.latest.total_nans + self._nans,
            bytes_sent=bytes_sent,
        )
        self._follow(latest.agreement)
        self.latest = latest._replace(mean_agreement=self._mean)

    def _follow(self, agreement: float) -> None:
        if math.isnan(agreement):
            return
        self._measured += 1
        previous = 0.0 if math.isnan(self._mean) else self._mean
        self._mean = previous + (agreement - previous) / min(self._measured, PATIENCE)
        disagrees = systematic_disagreement(self._voter, self._size, self._abstain, self._measured, self._mean)
        if disagrees is not None and not self._reported:
            self._reported = True
            warnings.warn(disagrees, RuntimeWarning, stacklevel=2)


def nan_report(voter: str, parameter: str, nans: int, coordinates: int) -> str:
    """What to tell the user, once, about a gradient with NaN.

    Args:
        voter: who votes here: "rank 3".
        parameter: whose gradient it is.
        nans, coordinates: how many of its coordinates are NaN, of how many.
    """
    return (
        f"{voter}: the gradient of parameter {parameter} is NaN in {nans} of {coordinates} coordinates: they abstain "
        "from the vote and training goes on (this is said once; vote_statistics() counts them)"
    )


def systematic_disagreement(voter: str, size: int, abstain: bool, measured: int, mean: float) -> str | None:
    """What to tell the user if a rank agrees with the vote less than random votes would, else None.

    Args:
        voter, size, abstain: as in `Monitor`.
        measured: in how many steps its agreement was measured.
        mean: `mean_agreement`.
    """
    chance = chance_agreement(size, abstain)
    # Of two nobody can tell which is wrong.
    if size <= 2 or measured < PATIENCE or not mean < chance - MARGIN:
        return None
    return (
        f"{voter} systematically disagrees with the others: in the last {PATIENCE} steps it agreed with the vote "
        f"on {mean:.1%} of its coordinates, less than random votes would ({chance:.1%} at {size} ranks); check its "
        "data, its code and its hardware (this is said once)"
    )


def chance_agreement(size: int, abstain: bool = True) -> float:
    """How often a rank agrees with the vote of `size` ranks, its own included, if all vote at random.

    With S the sum of M random signs, of the coordinates where S is not 0 it agrees on

        1/2 + E|S| / (2 M P(S != 0))

    where E|S| / M is the chance that the others tie or nearly tie: 1 for M = 1 and 2, 3/4 for M = 3, and nearer to 1/2
    the more ranks there are. Ties do not count; without `abstain` they are +1, with which half of the votes agree.
    """

    def binomial(n: int, k: int) -> float:  # C(n, k) / 2^n without overflow
        return math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))

    decided = 1.0 if size % 2 or not abstain else 1 - binomial(size, size // 2)
    return 0.5 + binomial(size - 1, (size - 1) // 2) / (2 * decided)
