"""Were gradients changed after they had been packed for a vote? Then the change does not count, and the user must know.

torch counts what is done to a tensor in place, but not what is done to it by NumPy or by `.data`; and it counts what
changes nothing, as clipping to an infinite norm does. So the gradients themselves are compared, by a fingerprint, which
takes another pass over them: in the first steps, and then ever more rarely. In between torch's count is believed, as
long as it has not been seen to mean nothing in this loop; and of gradients on a device it is all that is asked: to
compare them there, the host would have to wait.
"""

from collections.abc import Iterable

import torch

from horovod_sign.tensors.host import native_kernels
from horovod_sign.tensors.layout import has_memory
from horovod_sign.tensors.slots import Slot


class Watch:
    """Looks for changes between backward and step, until one is found."""

    def __init__(self) -> None:
        self._looking, self._closely, self._idle_writes, self._steps = True, True, False, 0

    def note(self, slots: Iterable[Slot], final: bool = True) -> None:
        """These gradients are packed now.

        Args:
            slots: their slots.
            final: whether nothing but the user changes them from now on.
        """
        if not self._looking:
            return
        for slot in slots:
            gradient = slot.parameter.grad
            if slot.seen is None and gradient is not None:
                closely = self._closely and final and gradient.is_cpu  # elsewhere, the host would wait
                slot.seen = _version(gradient), _fingerprint(slot, gradient) if closely else None

    def finds_change(self, slots: Iterable[Slot]) -> bool:
        """Ends a step: whether a gradient was changed since it was noted. Says so once."""
        if self._looking and any(map(self._changed, slots)):
            self._looking = False
            return True
        self._steps += 1
        self._closely = self._steps < 3 or self._steps & (self._steps - 1) == 0
        return False

    def _changed(self, slot: Slot) -> bool:
        if slot.seen is None or slot.group is None:
            return False
        gradient, (version, fingerprint) = slot.parameter.grad, slot.seen
        if gradient is None:
            return True
        written = _version(gradient) != version
        if fingerprint is None:
            return written and not self._idle_writes
        if fingerprint != _fingerprint(slot, gradient):
            return True
        self._idle_writes |= written
        return False


def _version(gradient: torch.Tensor) -> tuple[int, int]:
    """Differs once the gradient has been replaced, or written to by torch."""
    return id(gradient), gradient._version


def _fingerprint(slot: Slot, gradient: torch.Tensor) -> int | None:
    """A sum of its bits, as fast as memory is read; NaN are equal to themselves. None: there is nothing to read."""
    dense, layout = gradient.to_dense() if gradient.is_sparse else gradient, slot.layout
    if dense.shape != layout.shape or not has_memory(dense):
        return None
    values = dense if layout.holds(dense) else layout.copy("the gradient", dense, dense.dtype, dense.device)
    return native_kernels().read_loop(values.data_ptr(), values.numel() * values.element_size())
