"""`torch.amp.GradScaler` and votes: who overflowed, told to all ranks, before anything is voted on.

A scaled loss lets gradients overflow, on one rank perhaps and not on the others. Horovod's own wrapper then lets that
rank skip the step that the others take. Here all ranks learn of it first: those that overflowed abstain in the step,
the others vote on unscaled gradients, and all scalers see an overflow, so that the scales stay the same.
"""

from typing import NamedTuple

import horovod.torch as hvd
import torch
from torch.amp.grad_scaler import OptState


class Overflow(NamedTuple):
    """Which ranks found infinities or NaN in their scaled gradients in this step."""

    here: bool = False
    somewhere: bool = False
    everywhere: bool = False


class Scaling:
    """The scaler of an optimizer.

    Args:
        scaler: torch's, or None. One that is disabled counts as none.
        process_set: Horovod's, of the ranks that vote.
        name: of the Horovod op.
    """

    def __init__(self, scaler: torch.amp.GradScaler | None, process_set, name: str):
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._process_set, self._name = process_set, name

    @property
    def used(self) -> bool:
        """Whether losses are scaled."""
        return self._scaler is not None

    def check_step(self, optimizer):
        """Raises RuntimeError if this step does not come by the scaler, or by one that votes did not wait for."""
        stepped_by_scaler = getattr(optimizer, "found_inf", None) is not None
        if stepped_by_scaler and not self.used:
            self.hide_from_base(optimizer)
            raise RuntimeError(
                "a GradScaler steps this optimizer, whose votes started during backward on gradients that were still "
                "scaled: give hvs.DistributedOptimizer grad_scaler=scaler"
            )
        if self.used and not stepped_by_scaler:
            raise RuntimeError(
                "optimizer.step() was called while its grad_scaler is enabled, so its gradients are scaled: call "
                "scaler.step(optimizer) instead, or make the scaler with enabled=False"
            )

    def settle(self, optimizer) -> Overflow:
        """Unscales the gradients if the user has not, and tells all ranks which of them overflowed. A collective."""
        if not self.used:
            return Overflow()
        # The scaler skips this by itself only for optimizers that it steps conditionally, which would part the ranks.
        if self._scaler._per_optimizer_states[id(optimizer)]["stage"] is OptState.READY:
            self._scaler.unscale_(optimizer)
        found = self._scaler._found_inf_per_device(optimizer)
        found.setdefault(torch.device("cpu"), torch.zeros(()))  # a rank without any gradient has no entry
        here = any(bool(each) for each in found.values())
        counted = torch.tensor([float(here), 1.0])
        overflows, voters = hvd.allreduce(
            counted, name=f"{self._name}.found_inf", op=hvd.Sum, process_set=self._process_set
        ).tolist()
        if overflows:
            for each in found.values():
                each.fill_(1.0)  # what scaler.update() looks at
        return Overflow(here, overflows > 0, overflows == voters)

    @staticmethod
    def hide_from_base(optimizer):
        """The gradients are votes now: a fused step must neither unscale them nor skip. The scaler deletes both."""
        if hasattr(optimizer, "found_inf"):
            optimizer.found_inf = optimizer.grad_scale = None
