"""The order of work on a device: what runs after what, and what the host knows of it without waiting.

Gradients are read, and parameters written, on the streams that the user's own work runs on, so that nothing that the
user does to them can overtake a vote. Only the copies of bits to the host, which nothing else touches, have a stream of
their own.
"""

import contextlib
import functools
import warnings
from typing import Protocol

import torch


class Queue(Protocol):
    """The work of one device."""

    def here(self):
        """A context: what is inside is asked of this device."""

    def source(self):
        """The stream that runs what the caller asks for now."""

    def join(self, sources):
        """The current stream goes on when those have done what they were asked for."""

    def hold(self, sources):
        """Those go on when the current stream has done what it was asked for."""

    def copying(self):
        """A context: what is inside runs on the stream of copies, after what the current stream was asked for."""

    def mark(self):
        """A mark in the current stream."""

    def passed(self, mark) -> bool:
        """Whether a mark has been passed. Does not wait."""

    def wait(self, mark):
        """The host waits until a mark has been passed."""

    def copy(self, target: torch.Tensor, source: torch.Tensor):
        """Asks for a copy between pinned memory of the host and the device."""


class Streams:
    """A device with streams and events: CUDA, ROCm, XPU."""

    def __init__(self, device: torch.device):
        self._device = device
        self._module = torch.get_device_module(device)
        self._copies = self._module.Stream(device)

    def here(self):
        return self._module.device(self._device)

    def source(self):
        return self._module.current_stream(self._device)

    def join(self, sources):
        current = self.source()
        for stream in sources:
            if stream != current:
                current.wait_stream(stream)

    def hold(self, sources):
        current = self.source()
        for stream in sources:
            if stream != current:
                stream.wait_stream(current)

    @contextlib.contextmanager
    def copying(self):
        self._copies.wait_stream(self.source())
        with self._module.stream(self._copies):
            yield

    def mark(self):
        event = self._module.Event()
        event.record(self.source())
        return event

    def passed(self, mark) -> bool:
        return mark.query()

    def wait(self, mark):
        mark.synchronize()

    def copy(self, target: torch.Tensor, source: torch.Tensor):
        target.copy_(source, non_blocking=True)


class Inline:
    """A device whose work is done when it has been asked for, or that orders all of it by itself."""

    def here(self):
        return contextlib.nullcontext()

    def source(self):
        return None

    def join(self, sources):
        pass

    def hold(self, sources):
        pass

    def copying(self):
        return contextlib.nullcontext()

    def mark(self):
        return None

    def passed(self, mark) -> bool:
        return True

    def wait(self, mark):
        pass

    def copy(self, target: torch.Tensor, source: torch.Tensor):
        target.copy_(source)


@functools.cache
def queue_of(device: torch.device) -> Queue:
    """The queue of a device."""
    return Streams(device) if _has_streams(device) else Inline()


def pinned(nbytes: int, device: torch.device) -> torch.Tensor:
    """Bytes on the host that the device copies from and to while the host goes on.

    They may be let go at once: torch uses them again when copies that it knows of are done.
    """
    if _has_streams(device) and not _pageable:
        try:
            return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)
        except RuntimeError as error:
            _pageable.append(error)
            warnings.warn(
                f"the host has no pinned memory for the bits of votes ({error}): they are copied through ordinary "
                "memory, which is slower; raise the limit of locked memory (ulimit -l)",
                RuntimeWarning,
                stacklevel=2,
            )
    return torch.empty(nbytes, dtype=torch.uint8, device="cpu")


_pageable: list[Exception] = []  # why memory is not pinned, once that has failed


def _has_streams(device: torch.device) -> bool:
    module = torch.get_device_module(device)
    return device.type not in ("cpu", "mps") and hasattr(module, "Stream") and hasattr(module, "Event")
