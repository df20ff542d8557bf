"""`torch.amp.GradScaler` and votes: who overflowed, before anything is voted on.

A scaled loss lets gradients overflow, on one rank perhaps and not on the others. Horovod's own wrapper then lets that
rank skip the step that the others take. Here it abstains in the step, and its own scaler sees an overflow; the others
vote on unscaled gradients, whose signs do not hang on a scale, and keep theirs. So a rank that always overflows is
outvoted like any other that is wrong.
"""

import contextlib
import warnings
from typing import NamedTuple

import horovod.torch as hvd
import torch
from torch.amp.grad_scaler import OptState

from horovod_sign.tensors.scalers import stepping_scaler
from horovod_sign.voting import progress

# Steps one after the other in which a rank overflows before it is told: a scale that began too high falls faster.
OVERFLOWS = 32
_SWAPPED = (
    "scaler.step() was called on another GradScaler than the one that optimizer.synchronize() has unscaled by, the "
    "grad_scaler of hvs.DistributedOptimizer: make one GradScaler before the optimizer is wrapped and keep it (its "
    "state can be loaded), or call scaler.step(optimizer) without optimizer.synchronize()"
)


class Overflow(NamedTuple):
    """Which ranks found infinities or NaN in their scaled gradients in this step."""

    here: bool = False
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
        self._overflows = 0

    @property
    def used(self) -> bool:
        """Whether losses are scaled."""
        return self._scaler is not None

    def check_step(self, optimizer):
        """Raises RuntimeError if this step does not come by a scaler, or by one that votes did not wait for.

        A scaler that was made anew since, in each epoch perhaps, takes the place of the one before.
        """
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
        if stepped_by_scaler:
            self._take_from_caller(optimizer)

    def unscale_at_once(self, optimizer):
        """In a scaler's `step`, unscales gradients that are not.

        Else torch would look through all of them for infinities before `settle` does so once more, by unscaling them.
        """
        caller = stepping_scaler() if self.used else None
        if caller is not None and caller._per_optimizer_states[id(optimizer)]["stage"] is OptState.READY:
            with contextlib.suppress(Exception):  # `settle` fails of the same, where all ranks hear of it
                caller.unscale_(optimizer)

    def settle(self, optimizer) -> Overflow:
        """Unscales the gradients if the user has not, and tells all ranks whether they overflowed. A collective."""
        if not self.used:
            return Overflow()
        # The scaler skips this by itself only for optimizers that it steps conditionally, which would part the ranks.
        if self._scaler._per_optimizer_states[id(optimizer)]["stage"] is OptState.READY:
            self._scaler.unscale_(optimizer)
            if not hasattr(optimizer, "found_inf"):  # in synchronize(), not in scaler.step()
                _UnscaledAlready.expect(self._scaler, optimizer)
        found = self._scaler._found_inf_per_device(optimizer)
        found.setdefault(torch.device("cpu"), torch.zeros((), device="cpu"))  # without any gradient it has no entry
        here = any(bool(each) for each in found.values())
        self._count(here)
        counted = torch.tensor([float(here), 1.0], dtype=torch.float32, device="cpu")
        handle = hvd.allreduce_async(counted, name=f"{self._name}.found_inf", op=hvd.Sum, process_set=self._process_set)
        progress.until(lambda: hvd.poll(handle))
        overflows, voters = hvd.synchronize(handle).tolist()
        return Overflow(here, overflows == voters)

    def end_step(self, optimizer):
        """The step is over."""
        if self.used:
            _UnscaledAlready.forget(self._scaler, optimizer)

    @staticmethod
    def hide_from_base(optimizer):
        """The gradients are votes now: a fused step must neither unscale them nor skip. The scaler deletes both."""
        if hasattr(optimizer, "found_inf"):
            optimizer.found_inf = optimizer.grad_scale = None

    def _take_from_caller(self, optimizer):
        """The scaler is that whose step() this is."""
        caller = stepping_scaler()
        if caller is None or caller is self._scaler:
            return
        if optimizer._synchronized:
            self.hide_from_base(optimizer)
            raise RuntimeError(_SWAPPED)
        self._scaler = caller

    def _count(self, overflow: bool):
        self._overflows = self._overflows + 1 if overflow else 0
        if self._overflows == OVERFLOWS:
            warnings.warn(
                f"rank {hvd.rank()}: its scaled gradients were infinite or NaN in each of the last {OVERFLOWS} steps: "
                "it abstains from the votes, the others go on, and its scale falls; check its data and its model",
                RuntimeWarning,
                stacklevel=2,
            )


class _UnscaledAlready:
    """`scaler.unscale_` from optimizer.synchronize() to step(), as Horovod's recipe for mixed precision calls it there.

    The gradients were unscaled before the vote, and votes have no scale.
    """

    def __init__(self, scaler: torch.amp.GradScaler):
        self._scaler, self._optimizers = scaler, set()

    @classmethod
    def expect(cls, scaler: torch.amp.GradScaler, optimizer):
        """Once `scaler.unscale_(optimizer)` will do nothing."""
        scaler.__dict__.setdefault("unscale_", cls(scaler))._optimizers.add(id(optimizer))

    @staticmethod
    def forget(scaler: torch.amp.GradScaler, optimizer):
        """It is not expected any more."""
        own = scaler.__dict__.get("unscale_")
        if isinstance(own, _UnscaledAlready):
            own._optimizers.discard(id(optimizer))
            if not own._optimizers:
                del scaler.unscale_

    def __call__(self, optimizer):
        if id(optimizer) in self._optimizers:
            self.forget(self._scaler, optimizer)
        else:
            type(self._scaler).unscale_(self._scaler, optimizer)
