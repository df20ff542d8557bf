"""A gradient bucket of DistributedDataParallel as a bucket of votes."""

import torch
import torch.distributed as dist

from horovod_sign.rules import Rule
from horovod_sign.tensors.buckets import Bucket
from horovod_sign.tensors.planes import check_votable
from horovod_sign.voting.messages import Planes


class GradientBucket(Bucket):
    """The gradients of one bucket, where DDP has them: votes are packed from there, and written there.

    For the kernels' sake each parameter has a stand-in, a view of its gradient in the bucket whose own gradient is that
    view. What it votes by is kept for the parameter itself, since DDP makes other buckets after the first pass.

    Args:
        bucket: DDP's.
        rule: what this worker votes on.
        states: of all parameters.

    Attributes:
        buffer: DDP's, of all gradients.
        of_model: the parameters of the model.
    """

    def __init__(self, bucket: dist.GradBucket, rule: Rule, states: dict[torch.Tensor, dict]) -> None:
        self._key = _key(bucket)
        self.buffer, self.of_model = bucket.buffer(), bucket.parameters()
        for p in self.of_model:
            check_votable(f"a parameter of shape {tuple(p.shape)}", p)
        self._views = [view.detach() for view in bucket.gradients()]
        self._stand_ins = [view.detach().requires_grad_() for view in self._views]
        super().__init__(
            str(bucket.index()),
            [(each, f"of shape {tuple(each.shape)}", 0) for each in self._stand_ins],
            _Voter(rule, {each: states[p] for each, p in zip(self._stand_ins, self.of_model, strict=True)}),
        )

    def holds(self, bucket: dist.GradBucket) -> bool:
        """Whether DDP's bucket is still the one that this was made of."""
        return self._key == _key(bucket)

    @property
    def outside(self) -> list[torch.Tensor]:
        """A parameter whose gradient has memory of its own, if there is one (not with gradient_as_bucket_view)."""
        pairs = zip(self.of_model, self._views, strict=True)
        return [p for p, view in pairs if p.grad is not None and p.grad.data_ptr() != view.data_ptr()][:1]

    def launch(self, abstain: bool, silent: bool = False) -> Exception | None:
        """Packs the gradients as they are now. A parameter that backward has not reached abstains; if `silent`, all.

        Returns:
            Why others abstain too, if they could not be read.
        """
        for stand_in, view, p in zip(self._stand_ins, self._views, self.of_model, strict=True):
            stand_in.grad = None if silent or p.grad is None else view
        super().launch(abstain or silent)
        error, self.error = self.error, None
        return error

    def write(self, decided: Planes) -> None:
        """Makes the votes, -1, 0 or +1, the gradients."""
        for stand_in, view in zip(self._stand_ins, self._views, strict=True):
            stand_in.grad = view
        self.write_votes(decided)


class _Voter:
    """What a bucket of votes asks of an optimizer."""

    def __init__(self, rule: Rule, states: dict[torch.Tensor, dict]) -> None:
        self.param_groups: list[dict] = [{}]
        self._rule, self._states = rule, states

    def vote_rule(self, group: dict) -> Rule:
        return self._rule

    def vote_state(self, p: torch.Tensor) -> dict:
        return self._states[p]


def _key(bucket: dist.GradBucket) -> tuple:
    buffer = bucket.buffer()
    check_votable(f"gradient bucket {bucket.index()}", buffer)
    return buffer.data_ptr(), buffer.dtype, buffer.numel(), tuple(map(id, bucket.parameters()))
