"""A model of the user's: how many parameters it has, and how long its backward takes."""

import importlib
import math
import statistics
import time
from typing import Any


def inspect(path: str) -> tuple[int, float | None]:
    """Coordinates that are trained, and seconds of a forward and backward pass, if that can be told.

    Args:
        path: `package.module:function`; the function returns a model of PyTorch or Keras, or (a PyTorch model, a
            function without arguments that gives a loss of it).

    Raises:
        ValueError: the path has another form, or the function returned something else.
    """
    module, colon, name = path.partition(":")
    if not colon:
        raise ValueError(f"--model must be package.module:function, got {path!r}")
    made = getattr(importlib.import_module(module), name)()
    model, loss = made if isinstance(made, tuple) else (made, None)
    if hasattr(model, "trainable_variables"):
        return sum(math.prod(v.shape) for v in model.trainable_variables), None
    if not hasattr(model, "parameters"):
        raise ValueError(f"{path} returned a {type(model).__name__}, which is no model of PyTorch or Keras")
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return count, None if loss is None else _seconds(loss)


def _seconds(loss: Any) -> float:
    """The median of three passes after a first one. On a GPU it waits for the loss's gradient to be there."""
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        value = loss()
        value.backward()
        if value.is_cuda:
            import torch

            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])
