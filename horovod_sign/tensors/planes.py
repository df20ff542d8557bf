"""One tensor to bit planes and back, by the kernels for its device."""

import threading
from collections.abc import Iterable

import numpy as np
import torch

from horovod_sign.algebra import plane_bytes
from horovod_sign.tensors.kernels import BucketPlanes, planes_on
from horovod_sign.tensors.layout import check_memory, has_memory
from horovod_sign.tensors.words import Kept, Words
from horovod_sign.voting.messages import Planes

DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes: to see or send bits as they are


def check_votable(name: str, tensor: torch.Tensor):
    """Raises TypeError unless votes can be taken on `tensor`."""
    if tensor.dtype not in DTYPES:
        accepted = ", ".join(DTYPES.values())
        raise TypeError(f"{name} is of dtype {str(tensor.dtype).removeprefix('torch.')}: votes are on {accepted}")
    if tensor.device.type == "meta":
        raise TypeError(f"{name} is on the meta device and has no memory: materialise the model first")
    if tensor.layout is not torch.strided:
        kind = str(tensor.layout).removeprefix("torch.").removeprefix("_")
        raise TypeError(f"{name} is a tensor of the {kind} layout: votes are on dense (strided) ones")


def check_kernels(tensors: Iterable[torch.Tensor]):
    """Raises RuntimeError unless the kernels for the devices of these tensors run: Triton compiles them on each host.

    By the way they are compiled before the first step.
    """
    for device in {t.device for t in tensors}:
        try:
            pack(torch.ones(1, device=device), abstain=True)
        except Exception as error:
            raise RuntimeError(
                f"votes cannot be packed on {device} ({type(error).__name__}: {error}). Triton compiles its kernels on "
                "each host, by a C compiler; HOROVOD_SIGN_TORCH_KERNELS=operations does without it, on all ranks"
            ) from error


class Singles(threading.local):
    """Packs and unpacks tensors one by one; what is the same for all of one size is made at the first.

    On a device that is tables of launches, and memory for bits: then each takes one launch and one copy. Threads share
    none of it, since hooks of gradients run on a thread for each device.
    """

    def __init__(self) -> None:
        self._kept = Kept(most=256)  # sizes of tensors: there are fewer in a model

    def __reduce__(self) -> tuple:
        return type(self), ()  # what is kept is not for copies

    def pack(self, tensor: torch.Tensor, abstain: bool) -> Planes:
        """The ballot of one tensor, its coordinates in C order."""
        check_votable("the tensor", tensor)
        check_memory("the tensor", tensor)
        tensor = readable(tensor)
        there = self._expecting(tensor, abstain)
        there.pack(DTYPES[tensor.dtype], _FIRST, [tensor], one_bit=not abstain)
        return _fetched(there)

    def interpolate_pack(
        self, gradient: torch.Tensor, m: torch.Tensor, betas: tuple[float, float], warm: bool, abstain: bool
    ) -> Planes:
        """The ballot by the betas of a rule, whose momentum is updated. `are_alike` has said that they can be read."""
        there = self._expecting(gradient, abstain)
        there.interpolate_pack(DTYPES[gradient.dtype], _FIRST, [gradient], [m], betas, warm, one_bit=not abstain)
        return _fetched(there)

    def unpack(self, decided: Planes, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """The vote on one tensor: -1, 0 or +1."""
        votes = torch.empty(shape, dtype=dtype, device=device)
        there = self._planes_of(votes)
        received, _ = there.receive(decided)
        there.unpack(DTYPES[dtype], _FIRST, [votes], received)
        return votes

    def _planes_of(self, tensor: torch.Tensor) -> BucketPlanes:
        key = tensor.device, tensor.numel()
        if key not in self._kept:
            self._kept[key] = planes_on(tensor.device, Words.of(key[1:]), _NO_BALLOT)
        return self._kept[key]

    def _expecting(self, tensor: torch.Tensor, abstain: bool) -> BucketPlanes:
        """Those of the tensor, which will write into a ballot of its own."""
        there, nbytes = self._planes_of(tensor), plane_bytes(tensor.numel())
        there.forget()
        there.ballot = Planes(np.empty(nbytes, np.uint8), np.empty(nbytes, np.uint8) if abstain else None)
        return there


def _fetched(there: BucketPlanes) -> Planes:
    there.send_to_host()
    (zeros, nans), (sign, nonzero) = there.fetch(), there.ballot
    there.ballot = _NO_BALLOT  # this one is the caller's
    return Planes(sign, nonzero if zeros or nans else None)


def pack(tensor: torch.Tensor, abstain: bool) -> Planes:
    """As `Singles.pack`, of a tensor of which there is no other."""
    return Singles().pack(tensor, abstain)


def are_alike(gradient: torch.Tensor, m: torch.Tensor) -> bool:
    """Whether a gradient and a float32 momentum are in C order and can be read as they are, in one pass over both."""
    return (
        gradient.dtype in DTYPES
        and m.dtype == torch.float32
        and (m.device, m.shape) == (gradient.device, gradient.shape)
        and all(map(_lies_in_c_order, (gradient, m)))
    )


def _lies_in_c_order(x: torch.Tensor) -> bool:
    strided = x.layout is torch.strided and x.is_contiguous() and not x.is_neg() and has_memory(x)
    return strided and (x.data_ptr() != 0 or not x.numel())


def readable(tensor: torch.Tensor) -> torch.Tensor:
    """The values of a tensor that has memory, in C order and where a kernel can read them: itself, or a copy."""
    tensor = tensor.detach().contiguous().resolve_neg()
    # A clone has memory of its own, whatever lazy kind of tensor this is.
    return tensor if tensor.data_ptr() or not tensor.numel() else tensor.clone()


_FIRST = [0]  # the number of the only tensor
_NO_BALLOT = Planes(np.empty(0, np.uint8), np.empty(0, np.uint8))
