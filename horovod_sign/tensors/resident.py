"""Buckets whose ballots and votes stay on their device, and the statistics of such votes, which come later."""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from horovod_sign.statistics import Monitor, VoteStatistics, nan_report
from horovod_sign.tensors import kernels
from horovod_sign.tensors.buckets import Bucket
from horovod_sign.tensors.devices.resident import Found, Resident
from horovod_sign.tensors.devices.staging import DevicePlanes
from horovod_sign.tensors.words import Words
from horovod_sign.voting.messages import Planes
from horovod_sign.voting.protocols import Vote


def device_of(parameters: Mapping[torch.Tensor, str]) -> torch.device:
    """Where votes on parameters stay. Raises ValueError if that is not one device that can keep them."""
    devices: dict[torch.device, str] = {}
    for p, label in parameters.items():
        devices.setdefault(p.device, label)
    if len(devices) > 1:
        found = ", ".join(f"parameter {label} on {device}" for device, label in devices.items())
        raise ValueError(f'transport="device" needs all parameters on one device, but there is {found}: leave it out')
    device = next(iter(devices), torch.device("cpu"))
    if devices and kernels.set_of(device.type) == "native":
        raise ValueError(
            f'transport="device" keeps votes on a GPU, but parameter {devices[device]} is on {device}: move the model '
            "before the optimizer is wrapped, or leave transport as it is"
        )
    return device


def check_kernels(device: torch.device) -> None:
    """Raises RuntimeError unless the kernels that votes on a device need besides those of its ballots run."""
    parameter = torch.zeros(1, device=device)
    words = Words.of([1])
    there = kernels.resident_on(device, words, Planes(np.zeros(words.plane_bytes, np.uint8)), 1)
    try:
        there.pack("float32", [0], [parameter], one_bit=False)
        there.keep(True)
        decided = Vote(there.exchange(abstain=True), _NOTHING, "").wait()
        there.compare(decided, 0).read()
    except Exception as error:
        raise RuntimeError(
            f"votes cannot be tallied on {device} ({type(error).__name__}: {error}). Triton compiles its kernels on "
            "each host, by a C compiler; HOROVOD_SIGN_TORCH_KERNELS=operations does without it, on all ranks"
        ) from error


_NOTHING: Any = None  # of what carries votes: one rank asks for nothing


class ResidentBucket(Bucket):
    """A bucket that is on one device as a whole, and whose votes are taken there.

    Args:
        bucket: as of `Bucket`.
        size: how many ranks vote.
    """

    def __init__(self, *bucket: Any, size: int):
        super().__init__(*bucket)
        self._device, self._absent = self.parameters[0].device, 0
        self.there: Resident = kernels.resident_on(self._device, self.words, self._planes, size)
        self._on[self._device] = self.there

    def launch(self, abstain: bool) -> None:
        """As of `Bucket`, whose ballot then is `there`."""
        super().launch(abstain)
        self.there.keep(abstain)

    @property
    def packed(self) -> bool:
        """As of `Bucket`: it is packed in time for whatever is asked of the device next."""
        return True

    def collect(self) -> Resident:  # type: ignore[override]
        """What has the ballot, after `launch`."""
        self._absent = self._packing.absent
        self.forget()
        return self.there

    def compare(self, decided: DevicePlanes) -> Found:
        """Has the vote counted, after a step by it."""
        return self.there.compare(decided, self._absent)

    def check_parameters(self) -> None:
        """As of `Bucket`."""
        super().check_parameters()
        for slot in self._not_frozen():
            if slot.parameter.device != self._device:
                raise RuntimeError(
                    f"parameter {slot.label} was on {self._device} when hvs.DistributedOptimizer was made, and now is "
                    f'on {slot.parameter.device}, where transport="device" has no votes: move the model before the '
                    "optimizer is wrapped"
                )


class LateMonitor(Monitor):
    """A monitor of votes that are counted on a device: of a step, it says later what happened in it.

    It looks for counts when a step begins or ends, without waiting for those of the last step, and when it is asked.
    """

    def __init__(self, voter: str, size: int, *, abstain: bool) -> None:
        self._steps: collections.deque = collections.deque()
        self._votes: list[tuple[ResidentBucket, Found]] = []
        self._reading = False
        super().__init__(voter, size, abstain=abstain)

    @property
    def latest(self) -> VoteStatistics:
        """Of the last step. Waits for its counts."""
        self._read(0)
        return self._latest

    @latest.setter
    def latest(self, statistics: VoteStatistics) -> None:
        self._latest = statistics

    def begin(self) -> None:
        """As of `Monitor`."""
        self._votes = []
        self._read(1)

    def count_vote(self, bucket: ResidentBucket, decided: DevicePlanes) -> None:  # type: ignore[override]
        """As of `Monitor`."""
        self._votes.append((bucket, bucket.compare(decided)))

    def tell_nan(self, bucket: Any) -> None:
        """As of `Monitor`; it is told with the counts."""

    def end(self, bytes_sent: int) -> None:
        """As of `Monitor`."""
        self._steps.append((self._votes, bytes_sent))
        self._votes = []
        self._read(1)

    def _read(self, late: int) -> None:
        """Takes in the counts of steps, but of so many that may not be here yet."""
        if self._reading:
            return
        self._reading = True
        try:
            while self._steps and (len(self._steps) > late or all(found.here for _, found in self._steps[0][0])):
                self._take_in(*self._steps.popleft())
        finally:
            self._reading = False

    def _take_in(self, votes: list[tuple[ResidentBucket, Found]], bytes_sent: int) -> None:
        super().begin()
        for bucket, found in votes:
            counted = found.read()
            self._add(counted.coordinates, counted.both, counted.alike, counted.abstained, counted.nans)
            self._ties += counted.ties
            if counted.first is not None and not self._nan_told:
                slot = bucket.slots[counted.first[0]]
                self._tell(nan_report(self._voter, slot.label, counted.first[1], slot.size))
        super().end(bytes_sent)
