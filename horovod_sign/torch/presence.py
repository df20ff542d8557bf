"""Who takes part in a step, where votes alone would not tell: a word of all ranks' hosts beside them."""

from collections.abc import Sequence
from typing import Any

import horovod.torch as hvd
import torch

from horovod_sign.voting.reducer import Everybody


class Presence(Everybody):
    """An allreduce of Horovod's. A rank that has joined contributes nothing to it, not even that it is there.

    Args:
        name: of the op.
        notice: whether this rank must talk to all others; `notices` of them must, once that is `known`.
        joined: what to say if a rank has joined.
        process_set: Horovod's, of the ranks.
        more: further numbers, whose sums `_other_failure` is given.

    Attributes:
        failure: why there are no votes in this step, if there are none.
    """

    def __init__(
        self,
        name: str,
        notice: bool,
        joined: str,
        process_set: Any = hvd.global_process_set,
        more: Sequence[float] = (),
    ) -> None:
        self.notices, self.failure = 0, ""
        self._joined, self._ranks = joined, process_set.size()
        mine = torch.tensor([1, notice, *more], dtype=torch.float64, device="cpu")
        self._handle = hvd.allreduce_async(mine, name=name, op=hvd.Sum, process_set=process_set)

    @property
    def known(self) -> bool:  # type: ignore[override]
        """Whether all ranks have said that they are here."""
        return self._handle is None

    def check(self, wait: bool = False) -> None:
        """Raises RuntimeError if a rank has joined, or for another `failure`, as far as that is known."""
        if self._handle is not None and (wait or hvd.poll(self._handle)):
            (present, self.notices, *sums), self._handle = hvd.synchronize(self._handle).tolist(), None
            self.failure = self._joined if present < self._ranks else self._other_failure(sums)
        if self.failure:
            raise RuntimeError(self.failure)

    def _other_failure(self, sums: list[float]) -> str:
        return ""
