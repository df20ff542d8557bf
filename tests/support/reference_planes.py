"""A set of kernels of another kind, as docs/architecture.md says how to add one: `algebra.reference`, one by one."""

import contextlib

import numpy as np

from horovod_sign.algebra import plane_bytes, reference
from horovod_sign.tensors.devices.operations import in_memory_order


class ReferencePlanes:
    """See `horovod_sign.tensors.kernels.BucketPlanes`; of tensors that NumPy can read."""

    packed = True

    def __init__(self, device, words, ballot):
        self._words, self.ballot = words, ballot
        self.forget()

    def forget(self):
        self._counts = np.zeros(2, np.int64)

    def arrived(self, coordinates):
        return coordinates

    def working(self):
        return contextlib.nullcontext()

    def pack(self, dtype, numbers, gradients, one_bit):
        for i, gradient in zip(numbers, gradients, strict=True):
            self._put(i, *reference.pack(values(gradient), mode_of(one_bit)))

    def interpolate_pack(self, dtype, numbers, gradients, momenta, betas, warm, one_bit):
        for i, gradient, momentum in zip(numbers, gradients, momenta, strict=True):
            g, m = values(gradient), values(momentum)
            m[:], *packed = reference.interpolate_pack(g, m, *betas, mode_of(one_bit), warm)
            self._put(i, *packed)

    def send_to_host(self):
        pass

    def fetch(self):
        zeros, nans = self._counts.tolist()
        self.forget()
        return zeros, nans

    def receive(self, decided, steps=()):
        return decided, steps

    def unpack(self, dtype, numbers, outputs, received):
        for i, output in zip(numbers, outputs, strict=True):
            out = values(output)
            out[:] = reference.unpack(*self._planes_of(received, i), out.size, out.dtype)

    def apply(self, dtype, numbers, parameters, received, step):
        for i, parameter in zip(numbers, parameters, strict=True):
            x = values(parameter)
            x[:] = reference.apply(x, *self._planes_of(received, i), *step)

    def _put(self, i, sign, nonzero, *counts):
        self._counts += counts
        own_sign, own_nonzero = self._planes_of(self.ballot, i)
        own_sign[:] = sign
        if nonzero is not None:
            own_nonzero[:] = nonzero

    def _planes_of(self, planes, i):
        start, nbytes = self._words.offsets[i], plane_bytes(self._words.lengths[i])
        return [None if plane is None else plane[start : start + nbytes] for plane in planes]


def mode_of(one_bit: bool) -> int:
    return reference.ONEBIT if one_bit else reference.ABSTAIN


def values(tensor) -> np.ndarray:
    """The coordinates of a tensor as they lie in memory; shares it."""
    return in_memory_order(tensor).numpy()
