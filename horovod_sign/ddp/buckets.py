"""A gradient bucket of DistributedDataParallel as a bucket of votes."""

import torch
import torch.distributed as dist

from horovod_sign.rules import Rule
from horovod_sign.statistics import nan_report
from horovod_sign.tensors.buckets import Bucket
from horovod_sign.tensors.planes import check_votable
from horovod_sign.voting.messages import Planes


class GradientBucket:
    """The gradients of one bucket, where DDP has them: votes are packed from there, and written there.

    For the kernels' sake each parameter has a stand-in, a view of its gradient in the bucket whose own gradient is that
    view. What it votes by is kept for the parameter itself, since DDP makes other buckets after the first pass.

    Args:
        bucket: DDP's.
        rule: what this worker votes on.
        states: of all parameters.
    """

    def __init__(self, bucket: dist.GradBucket, rule: Rule, states: dict[torch.Tensor, dict]) -> None:
        self._key = _key(bucket)
        self.buffer, self.parameters = bucket.buffer(), bucket.parameters()
        for p in self.parameters:
            check_votable(f"a parameter of shape {tuple(p.shape)}", p)
        self._views = [view.detach() for view in bucket.gradients()]
        self._stand_ins = [view.detach().requires_grad_() for view in self._views]
        self._votes = Bucket(
            str(bucket.index()),
            [(each, f"of shape {tuple(each.shape)}", 0) for each in self._stand_ins],
            _Voter(rule, {each: states[p] for each, p in zip(self._stand_ins, self.parameters, strict=True)}),
        )

    def holds(self, bucket: dist.GradBucket) -> bool:
        """Whether DDP's bucket is still the one that this was made of."""
        return self._key == _key(bucket)

    @property
    def coordinates(self) -> int:
        """How many are voted on."""
        return self._votes.coordinates

    @property
    def outside(self) -> list[torch.Tensor]:
        """A parameter whose gradient has memory of its own, if there is one (not with gradient_as_bucket_view)."""
        pairs = zip(self.parameters, self._views, strict=True)
        return [p for p, view in pairs if p.grad is not None and p.grad.data_ptr() != view.data_ptr()][:1]

    def launch(self, abstain: bool, silent: bool) -> Exception | None:
        """Packs the gradients as they are now. A parameter that backward has not reached abstains; if `silent`, all.

        Returns:
            Why others abstain too, if they could not be read.
        """
        for stand_in, view, p in zip(self._stand_ins, self._views, self.parameters, strict=True):
            stand_in.grad = None if silent or p.grad is None else view
        self._votes.launch(abstain or silent)
        error, self._votes.error = self._votes.error, None
        return error

    def collect(self) -> Planes:
        """This rank's ballot."""
        return self._votes.collect()

    def write(self, decided: Planes) -> None:
        """Makes the votes, -1, 0 or +1, the gradients."""
        for stand_in, view in zip(self._stand_ins, self._views, strict=True):
            stand_in.grad = view
        self._votes.write_votes(decided)

    def counted(self, decided: Planes) -> tuple:
        """What `statistics.Monitor.count` wants to know of a vote."""
        votes = self._votes
        return votes.ballot, decided, votes.coordinates, votes.zeros + votes.nans, votes.nans

    def nan_report(self, voter: str) -> str | None:
        """What to tell the user of the first gradient with NaN, before votes are written; None: there is none."""
        for view in self._views if self._votes.nans else ():
            nans = int(view.isnan().sum())
            if nans:
                return nan_report(voter, f"of shape {tuple(view.shape)}", nans, view.numel())
        return None


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
