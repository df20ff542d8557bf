"""The communication hook: a gradient bucket goes in, and a future of the votes on it comes out."""

from typing import Any

import torch
import torch.distributed as dist

from horovod_sign.ddp.buckets import GradientBucket
from horovod_sign.ddp.state import VoteState


@torch.compiler.disable  # Dynamo would trace into the kernels, whose addresses it takes for numbers
def vote_hook(state: VoteState, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Votes on a bucket: `model.register_comm_hook(VoteState(...), vote_hook)`.

    Args:
        state: made on all ranks alike, for one model.
        bucket: DDP's.

    Returns:
        A future of the bucket's buffer, in which each coordinate is the vote: -1, 0 or +1.
    """
    with torch.no_grad():
        voted = state.bucket_of(bucket)
        ballot = _BallotOnItsWay(state, voted, bucket.index(), bucket.is_last())
        return state.courier.carry(ballot.vote, voted.buffer.device).then(ballot.finish)


class _BallotOnItsWay:
    """From a packed bucket to its votes."""

    def __init__(self, state: VoteState, voted: GradientBucket, index: int, is_last: bool) -> None:
        self._state, self._voted, self._index, self._is_last = state, voted, index, is_last
        self._decided: Any = None  # Planes
        # In Join a rank without data takes part in the votes of the others, outside of any backward pass.
        joined = not _in_backward()
        if not joined:
            state.look_for_leftovers(voted, is_last)
        self._loss_scale = state.scale.of_losses()
        # Whether gradients have overflowed: here, and once the vote is decided on any rank.
        self._overflow = not joined and state.scale.overflows(voted.buffer, self._loss_scale)
        # What cannot be voted on abstains, and is told by `finish`: the other ranks wait for this vote.
        self._failure: Exception | None = voted.launch(state.abstain, joined)

    def vote(self) -> None:
        """Carries the ballot to the others, and their decision here. Runs on the thread of the courier."""
        try:
            self._decided, self._overflow = self._state.decide(
                self._voted, self._overflow, self._index == 0, self._is_last
            )
        except Exception as error:  # of a network, for example: `finish` raises it, in backward
            self._failure = self._failure or error

    def finish(self, _: Any) -> torch.Tensor:
        """The votes in the buffer, once they are decided."""
        if self._failure is not None:
            raise RuntimeError(f"the vote on gradient bucket {self._index} failed: {self._failure}") from self._failure
        with torch.no_grad():
            self._voted.write(self._decided)
            self._state.scale.take_in(self._voted.buffer, self._overflow, self._loss_scale)
        return self._voted.buffer


def _in_backward() -> bool:
    try:
        torch.autograd.Variable._execution_engine.queue_callback(_nothing)
    except RuntimeError:  # "Final callbacks can only be installed during backward pass."
        return False
    return True


def _nothing() -> None:
    pass
