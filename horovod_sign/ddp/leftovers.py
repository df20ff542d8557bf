"""Do gradients begin at 0, or at the votes of the pass before? DDP without votes allows that; a vote on votes is none.

torch counts what is done to a tensor in place. After a pass DDP has written the votes into the gradients; if the next
pass finds the same tensors, and nothing was done to them but to add its gradients, nobody has cleared them.
"""

import warnings
import weakref
from collections.abc import Iterable
from typing import Any

import torch

_ADDED = (
    "backward added gradients to the votes of the pass before, and the vote is on the sum, since nothing has cleared "
    "them: call optimizer.zero_grad() before each pass; to accumulate gradients of several passes, run all but the "
    "last in model.no_sync()"
)


class Leftovers:
    """Of one model. Warns once."""

    def __init__(self) -> None:
        self._seen: dict[torch.Tensor, tuple[Any, int]] = {}
        self._looking = True

    def check(self, parameters: Iterable[torch.Tensor]) -> None:
        """Some gradients of a pass are there."""
        for p in [p for p in parameters if p in self._seen]:
            gradient, (seen, version) = p.grad, self._seen.pop(p)
            if gradient is not None and seen() is gradient and gradient._version == version + 1 and self._looking:
                self._looking = False
                warnings.warn(_ADDED, RuntimeWarning, stacklevel=2)

    def expect(self, parameters: Iterable[torch.Tensor]) -> None:
        """Once this backward pass is over, with all that DDP does at its end, the gradients of these are votes."""
        queue = torch.autograd.Variable._execution_engine.queue_callback
        if self._looking:
            queue(lambda: queue(lambda: self._note(parameters)))  # behind DDP's, which comes after all hooks

    def _note(self, parameters: Iterable[torch.Tensor]) -> None:
        self._seen = {p: (weakref.ref(p.grad), p.grad._version) for p in parameters if p.grad is not None}
