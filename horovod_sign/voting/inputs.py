"""What users give `majority_vote`: NumPy arrays, what NumPy makes arrays of, masked arrays, tensors of PyTorch.

Nothing here is collective, and all of it may fail on one rank alone: the caller tells the others (see `agreement`).
"""

import sys
from typing import Any

import numpy as np


def as_array(x: Any) -> np.ndarray:
    """x as a plain array, of the dtype that x has; masked entries become NaN, which abstains.

    Raises:
        TypeError, ValueError: in one sentence, what x is and what to pass instead.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return _of_tensor(torch, x)
    if isinstance(x, np.ma.MaskedArray):
        return _abstaining(x)
    if _has_masks(x):
        raise TypeError("pass one masked array, as np.ma.stack makes it: a list of masked arrays loses their masks")
    try:
        return np.asarray(x)
    except Exception as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        said = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise kind(
            f"pass one array of floating-point numbers: NumPy makes none of this {type(x).__name__} ({said})"
        ) from error


def _abstaining(x: np.ma.MaskedArray) -> np.ndarray:
    if not np.issubdtype(x.dtype, np.inexact) and x.dtype.name != "bfloat16":
        return x.data  # of a dtype that has no NaN, nor a vote
    return np.where(np.ma.getmaskarray(x), np.array(np.nan, x.dtype), x.data)


def _has_masks(x: Any) -> bool:
    if isinstance(x, list | tuple):
        return any(map(_has_masks, x))
    return isinstance(x, np.ma.MaskedArray)


def _of_tensor(torch: Any, x: Any) -> np.ndarray:
    """Its values, wherever they are and whatever autograd knows of them: the vote is no function to differentiate."""
    if x.layout != torch.strided:
        raise TypeError(f"pass a dense tensor, as to_dense() makes it, not one of {x.layout}")
    try:
        values = x.detach().resolve_conj().resolve_neg().cpu()
        if values.dtype != torch.bfloat16:
            return values.numpy()
        return values.contiguous().view(torch.int16).numpy().view(_bfloat16())
    except (RuntimeError, TypeError, NotImplementedError) as error:
        first = str(error).partition("\n")[0]
        raise TypeError(
            f"pass a tensor of floats on the CPU, not of {x.dtype} on device {x.device} ({first})"
        ) from error


def _bfloat16() -> np.dtype:
    """NumPy's dtype of that name, which another package brings."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise TypeError("NumPy has bfloat16 by ml_dtypes: pip install ml_dtypes, or pass x.float()") from error
    return np.dtype(ml_dtypes.bfloat16)
