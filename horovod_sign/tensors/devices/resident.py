"""The planes of one bucket that stay on their device: packed, exchanged, tallied and applied there.

    gradients -> pack -> messages, one for each rank -> (alltoall) -> tally -> (allgather) -> planes -> the step

Messages are *aligned*: each has the same length on all ranks and in all steps, so that the host need not know what is
in them, and waits for none of it. A chunk of a plane has C bytes, a multiple of 16:

    ballots that may abstain    [C: sign bits] [C: nonzero bits]
    one bit a coordinate        [C: sign bits] [16: all ones, or all zeros of a rank that does not vote]
    what is decided             [C: sign bits] [C: nonzero bits, unless votes are one bit]

What the host wants to know, it reads when that has come by itself: see `Found`.
"""

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from horovod_sign.tensors.devices import Kernels
from horovod_sign.tensors.devices.queues import Queue, pinned
from horovod_sign.tensors.devices.staging import DevicePlanes, DeviceStep, Staging, runs_of
from horovod_sign.tensors.words import Words, clear_nonzero
from horovod_sign.voting.collectives import Allgather, Alltoall, Request
from horovod_sign.voting.messages import Planes

WORDS = 1024  # of 32 bits, that a row of counts is of
_ALIGNED = 16  # bytes


class Messages(NamedTuple):
    """Some messages, one a row.

    Attributes:
        rows: uint8, on a device.
        chunk: bytes of a plane in each.
        ties: whether a coordinate may be 0, so that there are two planes.
    """

    rows: torch.Tensor
    chunk: int
    ties: bool

    @property
    def planes(self) -> torch.Tensor:
        """The planes in them: (message, plane, byte)."""
        count = 2 if self.ties else 1
        return self.rows[:, : count * self.chunk].unflatten(1, (count, self.chunk))

    @property
    def voters(self) -> torch.Tensor:
        """The last field of ballots of one bit, as int64."""
        return self.rows[:, self.chunk :].view(torch.int64)


class Resident(Staging):
    """One bucket's planes on one device, where they stay. See `tensors.kernels.BucketPlanes`.

    Args:
        device, words, ballot, kernels: as of `Staging`.
        size: how many ranks vote.
    """

    def __init__(self, device: torch.device, words: Words, ballot: Planes, kernels: Kernels, size: int):
        self._size = size
        self._chunk = _ALIGNED * -(-max(words.plane_bytes, 1) // (_ALIGNED * size))
        self._used_on: set = set()
        self._abstains = True
        self._steps: dict[tuple, tuple] = {}
        self._out: Any = None  # a tensor, once something is packed
        super().__init__(device, words, ballot, kernels)

    def send_to_host(self) -> None:
        """As in `BucketPlanes`: nothing is sent."""

    @property
    def packed(self) -> bool:
        """As in `BucketPlanes`."""
        return True

    def keep(self, abstain: bool) -> None:
        """Ends packing. What was not packed abstains, and is +1 where votes are one bit, as `abstain` says."""
        with self._queue.here():
            if not self._packed:
                self._begin()
            packed = {i for numbers, _ in self._packed for i in numbers}
            ballot, nothing = self._ballot(), self._nothing
            for start, stop in runs_of(self._words, [i for i in range(len(self._words.lengths)) if i not in packed]):
                self._queue.copy(ballot.sign[start:stop], self._byte)
                self._queue.copy(ballot.planes[1][start:stop], nothing[start:stop])
            self._queue.hold(self._sources)
            self._abstains = abstain
            self._used_on = {self._queue.source()}

    def exchange(self, *, abstain: bool) -> Generator[Request, Any, DevicePlanes]:
        """The protocol of a vote on what was packed: the exchange of `voting.protocols`, by aligned messages.

        Args:
            abstain: whether ties are 0; else they are +1.
        """
        ballots = self._message(abstain)
        if self._size > 1:
            received = yield Alltoall(ballots.rows.view(-1), [ballots.rows.shape[1]] * self._size)
            ballots = ballots._replace(rows=received.view(self._size, -1))
        decided = self._tally(ballots)
        if self._size > 1:
            received = yield Allgather(decided.rows.view(-1), alike=True)
            decided = decided._replace(rows=received.view(self._size, -1))
        return self._joined(decided)

    def receive(self, decided: Any, steps: Sequence[tuple[float, float]] = ()) -> tuple[Any, Sequence[Any]]:
        """As in `BucketPlanes`. The planes are here; what steps are like is copied if it has changed."""
        key = tuple(steps)
        with self._queue.here():
            self._queue.join(self._used_on)
            if key and key not in self._steps:
                host = pinned(16 * len(key), self._device)
                host.numpy().view(np.float64)[:] = np.array(key, np.float64).reshape(-1)
                scalars = torch.empty(2 * len(key), dtype=torch.float64, device=self._device)
                self._queue.copy(scalars, host.view(torch.float64))
                self._steps = {key: (scalars, self._queue.source())}
            received = []
            if key:
                scalars, uploaded_on = self._steps[key]
                self._queue.join({uploaded_on})
                received = [DeviceStep(scalars[2 * i : 2 * i + 2], decay != 0) for i, (_, decay) in enumerate(key)]
        return decided, received

    def compare(self, decided: DevicePlanes, absent: int) -> "Found":
        """Has counted how the vote and this rank's ballot were; to be called after a step by it.

        Args:
            decided: the vote.
            absent: coordinates that were not packed.
        """
        with self._queue.here():
            ballot = self._ballot()
            if not self._abstains:
                ballot = ballot._replace(nonzero=None)
            tail = self._out[2 * self._room :]
            self._kernels.compare(ballot, decided, tail[8 * self._firsts[-1] :].view(torch.int32).view(-1, 3))
            host = pinned(len(tail), self._device)
            self._queue.copy(host, tail)
            # The memory of the vote, and the ballot's, are used again where they were made.
            self._queue.hold(self._used_on)
            self._used_on |= {self._queue.source()}
            return Found(self._queue, self._queue.mark(), host, self._words, self._firsts, absent)

    @property
    def _room(self) -> int:
        """Bytes of a plane, as chunks are cut from it."""
        return self._size * self._chunk

    def _begin(self) -> None:
        if self._out is None:
            rows = -(-self._plane_bytes // (4 * WORDS))
            nbytes = 2 * self._room + 8 * self._firsts[-1] + 12 * max(rows, 1)
            self._out = torch.zeros(nbytes, dtype=torch.uint8, device=self._device)
            self._zeros = torch.zeros((), dtype=torch.int32, device=self._device)
            self._byte = torch.zeros((), dtype=torch.uint8, device=self._device)
            self._voting = {votes: torch.full((), -int(votes), device=self._device) for votes in (False, True)}
            nothing = torch.from_numpy(_abstaining(self._words))
            host = pinned(len(nothing), self._device).copy_(nothing)
            self._nothing = torch.empty(len(host), dtype=torch.uint8, device=self._device)
            self._queue.copy(self._nothing, host)
        self._queue.join(self._sources | self._used_on)
        self._queue.copy(self._out[2 * self._room :].view(torch.int32), self._zeros)

    def _ballot(self) -> DevicePlanes:
        n, room = self._plane_bytes, self._room
        counts = self._out[2 * room : 2 * room + 8 * self._firsts[-1]].view(torch.int32)
        return DevicePlanes(self._out[:n], self._out[room : room + n], counts)

    def _message(self, abstain: bool) -> Messages:
        length = 2 * self._chunk if abstain else self._chunk + _ALIGNED
        with self._queue.here():
            self._queue.join(self._used_on)
            made = Messages(self._empty(self._size, length), self._chunk, abstain)
            count = made.planes.shape[1]
            planes = self._out[: count * self._room].view(count, self._size, self._chunk)
            self._queue.copy(_words(made.planes), _words(planes).transpose(0, 1))
            if not abstain:  # this rank votes, unless it abstains as a whole
                self._queue.copy(made.voters, self._voting[not self._abstains])
        return made

    def _tally(self, ballots: Messages) -> Messages:
        with self._queue.here():
            count = 2 if ballots.ties else 1
            decided = Messages(self._empty(1, count * ballots.chunk), ballots.chunk, ballots.ties)
            self._kernels.tally(ballots, decided)
        return decided

    def _joined(self, decided: Messages) -> DevicePlanes:
        n, room = self._plane_bytes, self._room
        with self._queue.here():
            planes = decided.rows.view(-1)
            if decided.ties and self._size > 1:
                planes = self._empty(2 * room)
                ordered = planes.view(2, self._size, self._chunk)
                self._queue.copy(_words(ordered), _words(decided.planes).transpose(0, 1))
            self._used_on = self._used_on | {self._queue.source()}
        return DevicePlanes(planes[:n], planes[room : room + n] if decided.ties else None)

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.uint8, device=self._device)


class Found:
    """What was counted on a device, on its way to the host.

    Args:
        queue, mark: that it is there.
        host: counts of each tile, and then of each pair of planes.
        words, firsts: of the bucket: what is where in its planes, and the first tile of each tensor.
        absent: coordinates that were not packed.
    """

    def __init__(self, queue: Queue, mark: Any, host: torch.Tensor, words: Words, firsts: list[int], absent: int):
        self._queue, self._mark, self._host = queue, mark, host
        self._words, self._firsts, self._absent = words, firsts, absent

    @property
    def here(self) -> bool:
        """Whether `read` would return without waiting."""
        return self._queue.passed(self._mark)

    def read(self) -> "Counted":
        """The counts; waits for them."""
        if not self.here:
            self._queue.wait(self._mark)
        numbers = self._host.numpy().view(np.int32)
        tiles = numbers[: 2 * self._firsts[-1]].reshape(-1, 2).astype(np.int64)
        both, alike, ties = numbers[2 * self._firsts[-1] :].reshape(-1, 3).sum(axis=0, dtype=np.int64).tolist()
        coordinates = sum(self._words.lengths)
        padding = 8 * self._words.plane_bytes - coordinates
        zeros, nans = tiles.sum(axis=0).tolist()
        starts = zip(self._firsts, self._firsts[1:], strict=False)
        with_nan = next(((i, int(tiles[a:b, 1].sum())) for i, (a, b) in enumerate(starts) if tiles[a:b, 1].any()), None)
        return Counted(coordinates, both - padding, alike - padding, ties, self._absent + zeros + nans, nans, with_nan)


class Counted(NamedTuple):
    """Of one vote.

    Attributes:
        coordinates: voted on.
        both, alike, ties: where neither this rank's ballot nor the vote is 0; and where then they are the same; and
            where the vote is 0.
        abstained, nans: where the ballot abstains, and where because of NaN.
        first: the first tensor with NaN, and how many it has.
    """

    coordinates: int
    both: int
    alike: int
    ties: int
    abstained: int
    nans: int
    first: tuple[int, int] | None


def _words(planes: torch.Tensor) -> torch.Tensor:
    """Bytes of planes as words of 64 bits: a device copies them one by one where they are not in one piece."""
    return planes.view(torch.int64)


def _abstaining(words: Words) -> np.ndarray:
    """The nonzero plane of a ballot that abstains everywhere."""
    plane = np.empty(words.plane_bytes, np.uint8)
    for n, offset in zip(words.lengths, words.offsets, strict=True):
        clear_nonzero(plane, offset, n)
    return plane
