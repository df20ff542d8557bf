"""Whether gradients are still the votes that the last step left there, which cannot be voted on again."""

import weakref
from typing import Any

import torch

SAMPLE = 64


class Spent:
    """What a step has left as gradients.

    Torch counts what changes a tensor, but not what is written through `.data` or NumPy, as master weights get their
    gradients. So a few values of the largest gradient are kept as well.
    """

    def __init__(self) -> None:
        self._left: list[tuple[torch.Tensor, weakref.ref, int]] = []
        self._sample: Any = None  # (a parameter, values of its gradient)

    def note(self, param_groups: list[dict]) -> None:
        """The step is over."""
        parameters = [p for group in param_groups for p in group["params"] if p.grad is not None]
        self._left = [(p, weakref.ref(p.grad), p.grad._version) for p in parameters]
        self._sample = None
        if parameters:
            largest = max(parameters, key=torch.Tensor.numel)
            self._sample = largest, _sample(largest.grad)

    def unchanged(self, param_groups: list[dict]) -> bool:
        """Whether all gradients are what `note` saw. Of votes that are all 0 nobody could tell: then they are not."""
        parameters = {p for group in param_groups for p in group["params"] if p.grad is not None}
        left = {p for p, _, _ in self._left}
        if not left or parameters != left or not all(_is_left(*each) for each in self._left):
            return False
        p, sample = self._sample
        return bool(sample.any()) and torch.equal(_sample(p.grad), sample)


def _is_left(p: torch.Tensor, left: Any, version: int) -> bool:
    return p.grad is not None and p.grad is left() and p.grad._version == version


def _sample(gradient: torch.Tensor) -> torch.Tensor:
    """Some values from all over a gradient."""
    if gradient.layout is not torch.strided:
        return gradient.to_dense().flatten()[:SAMPLE].clone()
    flat = gradient.detach().reshape(-1) if gradient.is_contiguous() else gradient.detach().flatten()
    return flat[:: max(1, len(flat) // SAMPLE)].clone()
