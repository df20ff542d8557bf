"""All ranks of a vote in one process: the real protocols, with the collectives between them done by hand."""

from typing import NamedTuple

import numpy as np

from horovod_sign import algebra
from horovod_sign.voting.collectives import Allgather, Allreduce, Alltoall
from horovod_sign.voting.messages import Planes
from horovod_sign.voting.protocols import PROTOCOLS, bytes_sent


class Simulated(NamedTuple):
    """What came of a vote: of each rank its decision and the bytes that it sent; and the requests that all made."""

    decisions: list[Planes]
    sent: list[int]
    kinds: list[type]


def ballot(x, abstain: bool = True) -> Planes:
    """A rank's ballot on an array."""
    return Planes(*algebra.pack_ballot(x, abstain)[:2])


def vote(transport: str, ballots: list[Planes], abstain: bool) -> Simulated:
    """Runs a vote of all ranks."""
    size = len(ballots)
    running = [PROTOCOLS[transport](b, rank, size, abstain=abstain) for rank, b in enumerate(ballots)]
    sent, kinds, results, decisions = [0] * size, [], [None] * size, []
    while not decisions:
        requests = []
        for protocol, result in zip(running, results, strict=True):
            try:
                requests.append(protocol.send(result))
            except StopIteration as stop:
                decisions.append(stop.value)
        if requests:
            assert len({type(r) for r in requests}) == 1 and not decisions, "ranks must make the same requests"
            sent = [s + bytes_sent(r, size, rank) for rank, (s, r) in enumerate(zip(sent, requests, strict=True))]
            kinds.append(type(requests[0]))
            results = _carry_out(requests)
    return Simulated(decisions, sent, kinds)


def _carry_out(requests) -> list[np.ndarray]:
    """The results, for all ranks, of the requests that all ranks made."""
    if isinstance(requests[0], Allgather):
        return [np.concatenate([r.buffer for r in requests])] * len(requests)
    if isinstance(requests[0], Allreduce):
        return [sum(r.words for r in requests)] * len(requests)
    assert isinstance(requests[0], Alltoall)
    pieces = [np.split(r.buffer, np.cumsum(r.lengths)[:-1]) for r in requests]
    return [np.concatenate([sent[rank] for sent in pieces]) for rank in range(len(requests))]
