"""An alpha-beta model of what a reduction takes, and its fit to the results of vote and step.

With the messages and bytes that `horovod_sign.voting.costs` gives for one rank, a method x takes

    T = crowd * (ops * tau + messages * alpha + bytes * eta + work * gamma_x) + (link_bytes - burst) * beta / rate

    tau     seconds that one op of Horovod takes, however little it carries; ops: 1, an exchange is 2
    alpha   seconds that one message takes
    eta     seconds that the processor takes to send, receive and (for sums) add a byte
    gamma   seconds that the kernels take, for each coordinate, or for each coordinate of each ballot that is tallied;
            "pass": gradients are read and parameters updated once, whatever the method
    beta    what the link takes, as a multiple of link_bytes / rate: a little above 1, for headers and idle moments
    burst   bytes that a shaped link lets through at once, before it holds to its rate (1 MB in hosts.sh)
    crowd   max(1, ranks / cores): hosts made on one machine share its cores, and only the link is each host's own

alpha and eta are fitted apart for TCP and for shared memory (results with no rate). The sum has no overlap of wire and
processor in it, so it is too high where both are busy at once. All constants enter linearly, so they are found by least
squares, with none below 0: one that would be is 0. The errors are (T_model - T) / sqrt(T_model * T), in which twice and
half are equally wrong; the T_model below the line is that of the round before, until it stays.
"""

import math
import re
from typing import NamedTuple

import numpy as np

from horovod_sign.options import BUCKET_CAP_MB, bucket_bytes
from horovod_sign.voting import costs
from horovod_sign.voting.costs import Cost

VOTES = {"exchange", "signsgd", "signsgd_one_bit", "signum_one_bit"}  # methods whose votes travel by the exchange
NOT_MODELLED = {"backward", "one_bit_alone", "one_bit_no_overlap"}


class Setting(NamedTuple):
    """What is reduced, how, and where.

    Attributes:
        kind: "vote" or "step", as in the results.
        method: as in the results.
        n, ranks: coordinates and ranks.
        abstain: whether ties are 0.
        rate: of a link, in bytes a second; None: shared memory.
        ranks_per_link: ranks of one host, which share its link.
        crowd: ranks that share a core, at least 1.
        burst: bytes that the link sends at once.
    """

    kind: str
    method: str
    n: int
    ranks: int
    abstain: bool = False
    rate: float | None = None
    ranks_per_link: int = 1
    crowd: float = 1.0
    burst: float = 0.0


def bytes_per_second(rate: str) -> float | None:
    """ "10gbit" -> 1.25e9; None for a record without a link."""
    match = re.fullmatch(r"([\d.]+)([kmg])bit", rate)
    return float(match[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[match[2]] / 8 if match else None


def setting(record: dict, cores: int, burst: float = 0.0) -> Setting:
    """The setting of a line of results that was measured on hosts that share `cores`, with links of that burst."""
    method = record["method"]
    abstain = record.get("abstain", method == "signsgd")
    crowd = max(1.0, record["ranks"] / cores)
    rate = bytes_per_second(record["rate"])
    return Setting(record["kind"], method, record["coordinates"], record["ranks"], abstain, rate, 1, crowd, burst)


def ops_and_cost(s: Setting) -> tuple[int, Cost]:
    """The ops of Horovod, and what one rank sends."""
    if s.method in VOTES:
        votes = math.ceil(4 * s.n / bucket_bytes(BUCKET_CAP_MB)) if s.kind == "step" else 1
        one = costs.exchange_cost(-(-s.n // votes), s.ranks, costs.usual_planes(s.ranks, s.abstain))
        return 2 * votes, Cost(votes * one.messages, votes * one.bytes)
    if s.method == "byte_allgather":
        return 1, costs.allgather_cost(s.n, s.ranks)
    if s.method == "bit_allgather":
        return 1, costs.allgather_cost(1 + costs.plane_bytes(s.n), s.ranks)
    if s.method == "counts":
        return 1, costs.counts_cost(s.n, s.ranks)
    return 1, costs.allreduce_cost((2 if s.method == "float16" else 4) * s.n, s.ranks)


def link_bytes(s: Setting) -> float:
    """What a host's link sends. A ring leaves a host once; an alltoall leaves it from each of the host's ranks."""
    _, cost = ops_and_cost(s)
    if s.method not in VOTES or s.ranks_per_link == 1:
        return cost.bytes
    there = costs.plane_bytes(s.n) * (s.ranks - s.ranks_per_link) / s.ranks * s.ranks_per_link
    ballots, votes = costs.usual_planes(s.ranks, s.abstain)
    return ballots * there + votes * costs.plane_bytes(s.n) * (s.ranks - 1) / s.ranks


def work(s: Setting) -> dict[str, float]:
    """How often each gamma counts."""
    if s.kind == "step":
        return {f"gamma step {s.method}": s.n}
    own = {
        "float32": {},
        "byte_allgather": {"gamma byte tally": s.n * s.ranks},
        "bit_allgather": {"gamma tally": s.n * s.ranks},
        "exchange": {"gamma tally": s.n},  # n/M coordinates of M ballots
    }
    return {"gamma pass": s.n, **own.get(s.method, {f"gamma {s.method}": s.n})}


def terms(s: Setting) -> dict[str, float]:
    """What each constant is multiplied by: T is the sum of the products."""
    ops, cost = ops_and_cost(s)
    medium = "memory" if s.rate is None else "TCP"
    found = {"tau": ops, f"alpha {medium}": cost.messages, f"eta {medium}": cost.bytes, **work(s)}
    found = {name: s.crowd * value for name, value in found.items()}
    return found if s.rate is None else {**found, "beta": max(0.0, link_bytes(s) - s.burst) / s.rate}


def seconds(constants: dict[str, float], s: Setting) -> float:
    """T of the model."""
    return sum(constants.get(name, 0.0) * value for name, value in terms(s).items())


def measured(records: list[dict]) -> list[tuple[dict, float]]:
    """The records that the model is about, with their seconds; for steps, what is added to a backward alone."""
    where = lambda r: (r["rate"], r["ranks"], r["coordinates"])  # noqa: E731
    records = [r for r in records if not r.get("pause_ms")]
    alone = {where(r): r["ms"] for r in records if r["method"] == "backward"}
    kept = []
    for r in records:
        added = r["ms"] - (alone[where(r)] if r["kind"] == "step" else 0.0)
        if r["method"] not in NOT_MODELLED and r["ranks"] > 1 and added > 0 and not sends_more(r):
            kept.append((r, 1e-3 * added))
    return kept


def sends_more(record: dict) -> bool:
    """Whether a link carried far more than the model has it: an algorithm that is none of the model's.

    So does Open MPI's allreduce where the ranks are no power of two. Small results have too many headers to tell.
    """
    expected = link_bytes(setting(record, cores=1))
    return expected > 1e6 and record.get("bytes", 0) > 1.25 * expected


class Fit(NamedTuple):
    """Constants with their standard errors (NaN for those that are 0), and T_model / T - 1 of each point."""

    constants: dict[str, float]
    errors: dict[str, float]
    residuals: np.ndarray


def fit(settings: list[Setting], times: list[float], rounds: int = 30) -> Fit:
    """The constants, none below 0, with the least sum of squares of relative errors.

    Raises:
        ValueError: fewer points than constants.
    """
    rows = [terms(s) for s in settings]
    names = sorted({name for row in rows for name in row})
    if len(rows) < len(names):
        raise ValueError(f"{len(rows)} results are too few for {len(names)} constants: measure more ranks and sizes")
    matrix, times = np.array([[row.get(name, 0.0) for name in names] for row in rows]), np.array(times)
    constants, errors = _weighted(matrix, times, times)
    for _ in range(rounds):
        constants, errors = _weighted(matrix, times, np.sqrt(times * (matrix @ constants)))
    named = (dict(zip(names, map(float, values), strict=True)) for values in (constants, errors))
    return Fit(*named, matrix @ constants / times - 1)


def _weighted(matrix: np.ndarray, times: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Constants and their standard errors, by errors relative to the `expected` times."""
    relative = matrix / expected[:, None]
    scale = np.linalg.norm(relative, axis=0)  # one for all columns: constants differ by ten orders of magnitude
    relative, right = relative / scale, times / expected
    found, free = _nonnegative(relative, right)
    left_over = relative @ found - right
    variance = left_over @ left_over / max(len(right) - len(free), 1)
    errors = np.full(len(found), np.nan)
    errors[free] = np.sqrt(variance * np.diag(np.linalg.pinv(relative[:, free].T @ relative[:, free])))
    return found / scale, errors / scale


def _nonnegative(matrix: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Least squares with no unknown below 0 (Lawson and Hanson's active sets); and which unknowns are free, not 0."""
    found, free = np.zeros(matrix.shape[1]), []
    for _ in range(10 * len(found)):
        gradient = matrix.T @ (right - matrix @ found)
        gradient[free] = -np.inf
        best = int(np.argmax(gradient))
        if gradient[best] < 1e-9:
            break
        free.append(best)
        while True:
            trial = np.zeros_like(found)
            trial[free] = np.linalg.lstsq(matrix[:, free], right, rcond=None)[0]
            below = [i for i in free if trial[i] <= 0]
            if not below:
                break
            step = min(found[i] / (found[i] - trial[i]) for i in below)
            found = found + step * (trial - found)
            free = [i for i in free if found[i] > 1e-14]
        found = trial
    return found, sorted(free)
