"""Workers that go wrong, on purpose: to see that the others still learn.

    handles = hvs.adversaries.corrupt(model.parameters(), "flipped")   # on the ranks that shall go wrong
    ...
    for handle in handles:
        handle.remove()

Each kind replaces the gradients of this rank as they are computed, before anything votes on them, so that it works
with any optimizer. None of them knows what the other ranks do (Bernstein et al. 2019, arXiv 1810.05291, Section 3.3,
"blind" adversaries; against the majority vote, "flipped" is the worst of them).
"""

from collections.abc import Callable, Iterable

import torch

KINDS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "flipped": lambda g, _: -g,
    "random": lambda g, generator: torch.randn(g.shape, generator=generator, device="cpu").to(g),
    "constant": lambda g, _: torch.ones_like(g),
    "silent": lambda g, _: torch.zeros_like(g),
    "nan": lambda g, _: torch.full_like(g, float("nan")),
    "inf": lambda g, _: torch.full_like(g, float("inf")),
}
"""What a worker of each kind makes of its gradient."""


def corrupt(parameters: Iterable[torch.Tensor], kind: str, seed: int = 0, every: int = 1) -> list:
    """From now on, makes this rank's gradients of `parameters` those of a worker that went wrong.

    Args:
        parameters: for example `model.parameters()`.
        kind: "flipped", "random", "constant", "silent" (abstains), "nan" or "inf".
        seed: of "random"; give each rank its own.
        every: only every so many gradients of each parameter.

    Returns:
        Handles with `remove()`.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
    generator = torch.Generator("cpu").manual_seed(seed)
    return [p.register_hook(_Corruption(KINDS[kind], generator, every)) for p in parameters if p.requires_grad]


class _Corruption:
    """A hook on the gradients of one parameter."""

    def __init__(self, make: Callable, generator: torch.Generator, every: int):
        self._make, self._generator, self._every, self._seen = make, generator, every, 0

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor | None:
        self._seen += 1
        return None if self._seen % self._every else self._make(gradient, self._generator)
