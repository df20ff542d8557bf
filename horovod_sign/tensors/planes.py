"""One tensor to bit planes and back, by the native kernels on a CPU and by those of `devices` elsewhere."""

from collections.abc import Iterable

import numpy as np
import torch

from horovod_sign.algebra import native, plane_bytes
from horovod_sign.tensors import devices
from horovod_sign.tensors.devices.staging import Staging, Tensors
from horovod_sign.tensors.layout import check_memory
from horovod_sign.voting.messages import Planes

DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes: to see or send bits as they are


_FORCED = devices.forced()


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


def has_kernels(tensor: torch.Tensor) -> bool:
    """Whether the native kernels handle the device of `tensor`; `devices` handles all others."""
    return tensor.is_cpu and _FORCED is None


def check_kernels(tensors: Iterable[torch.Tensor]):
    """Raises RuntimeError unless the kernels for the devices of these tensors run: Triton compiles them on each host.

    By the way they are compiled before the first step.
    """
    for device in {t.device for t in tensors if not has_kernels(t)}:
        try:
            pack(torch.ones(1, device=device), abstain=True)
        except Exception as error:
            raise RuntimeError(
                f"votes cannot be packed on {device} ({type(error).__name__}: {error}). Triton compiles its kernels on "
                "each host, by a C compiler; HOROVOD_SIGN_TORCH_KERNELS=operations does without it, on all ranks"
            ) from error


def kernels() -> native.Kernels:
    """The native kernels, on as many threads as torch's own operations use."""
    chosen = native.kernels()
    chosen.threads = torch.get_num_threads()
    return chosen


def pack(tensor: torch.Tensor, abstain: bool) -> Planes:
    """The ballot of one tensor, its coordinates in C order."""
    check_votable("the tensor", tensor)
    check_memory("the tensor", tensor)
    tensor = readable(tensor)
    if not has_kernels(tensor):
        return _pack_there(tensor, abstain)
    segments = native.Segments([(tensor.data_ptr(), tensor.numel())])
    sign = np.empty(segments.plane_bytes, np.uint8)
    nonzero = np.empty_like(sign) if abstain else None
    mode = native.ABSTAIN if abstain else native.ONEBIT
    zeros, nans = kernels().pack(DTYPES[tensor.dtype], mode, segments, sign, nonzero)
    return Planes(sign, nonzero if zeros or nans else None)


def readable(tensor: torch.Tensor) -> torch.Tensor:
    """The values of a tensor that has memory, in C order and where a kernel can read them: itself, or a copy."""
    tensor = tensor.detach().contiguous().resolve_neg()
    # A clone has memory of its own, whatever lazy kind of tensor this is.
    return tensor if tensor.data_ptr() or not tensor.numel() else tensor.clone()


def unpack(decided: Planes, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The vote on one tensor: -1, 0 or +1."""
    votes = torch.empty(shape, dtype=dtype, device=device)
    if not has_kernels(votes):
        staging, tensors = _staged(votes)
        there, _ = staging.receive(decided)
        staging.unpack(DTYPES[dtype], tensors, [votes], there)
        return votes
    segments = native.Segments([(votes.data_ptr(), votes.numel())])
    kernels().unpack(DTYPES[dtype], segments, decided.sign, decided.nonzero)
    return votes


def _pack_there(tensor: torch.Tensor, abstain: bool) -> Planes:
    staging, tensors = _staged(tensor)
    staging.pack(DTYPES[tensor.dtype], tensors, [tensor], None, None, warm=False, one_bit=not abstain)
    staging.send_to_host()
    sign, nonzero = np.zeros((2, plane_bytes(tensor.numel())), np.uint8)
    zeros, nans = staging.fetch(sign, nonzero)
    return Planes(sign, nonzero if zeros or nans else None)


def _staged(tensor: torch.Tensor) -> tuple[Staging, Tensors]:
    n = tensor.numel()
    return Staging(tensor.device, plane_bytes(n), [n]), Tensors((n,), (0,), (0,))
