"""One tensor to bit planes and back, by the kernels for its device."""

from collections.abc import Iterable

import numpy as np
import torch

from horovod_sign.algebra import plane_bytes
from horovod_sign.tensors.kernels import planes_on
from horovod_sign.tensors.layout import check_memory
from horovod_sign.tensors.words import Words
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


def pack(tensor: torch.Tensor, abstain: bool) -> Planes:
    """The ballot of one tensor, its coordinates in C order."""
    check_votable("the tensor", tensor)
    check_memory("the tensor", tensor)
    tensor = readable(tensor)
    words = _words(tensor)
    ballot = Planes(np.empty(words.plane_bytes, np.uint8), np.empty(words.plane_bytes, np.uint8))
    there = planes_on(tensor.device, words, ballot)
    there.pack(DTYPES[tensor.dtype], [0], [tensor], one_bit=not abstain)
    there.send_to_host()
    zeros, nans = there.fetch()
    return Planes(ballot.sign, ballot.nonzero if zeros or nans else None)


def readable(tensor: torch.Tensor) -> torch.Tensor:
    """The values of a tensor that has memory, in C order and where a kernel can read them: itself, or a copy."""
    tensor = tensor.detach().contiguous().resolve_neg()
    # A clone has memory of its own, whatever lazy kind of tensor this is.
    return tensor if tensor.data_ptr() or not tensor.numel() else tensor.clone()


def unpack(decided: Planes, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The vote on one tensor: -1, 0 or +1."""
    votes = torch.empty(shape, dtype=dtype, device=device)
    there = planes_on(votes.device, _words(votes), _NO_BALLOT)
    received, _ = there.receive(decided)
    there.unpack(DTYPES[dtype], [0], [votes], received)
    return votes


def _words(tensor: torch.Tensor) -> Words:
    """Those of a bucket that has nothing but this tensor."""
    n = tensor.numel()
    return Words((n,), (0,), plane_bytes(n))


_NO_BALLOT = Planes(np.empty(0, np.uint8), np.empty(0, np.uint8))
