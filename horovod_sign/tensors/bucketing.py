"""Which parameters of an optimizer are voted on together."""

from collections.abc import Callable, Mapping

import torch

from horovod_sign.tensors.buckets import Bucket, Voter
from horovod_sign.tensors.layout import Layout
from horovod_sign.voting.plan import plan


def groups_of(param_groups: list[dict]) -> dict[torch.Tensor, int]:
    """The number of its group, for each parameter, in their order."""
    return {p: i for i, group in enumerate(param_groups) for p in group["params"]}


def make_buckets(
    voter: Voter,
    parameters: dict[torch.Tensor, str],
    capacity: int,
    first: int = 0,
    layouts: Mapping[torch.Tensor, Layout] | None = None,
    kind: Callable[..., Bucket] = Bucket,
) -> list[Bucket]:
    """Cuts parameters of an optimizer into buckets, last parameters first, as backward meets them.

    Args:
        voter: the optimizer.
        parameters: those of its parameters that want buckets, and what to call them.
        capacity: bytes of gradient in a bucket, which a parameter alone may exceed.
        first: number of the first bucket; their names are numbered on.
        layouts: of parameters that were voted on before.
        kind: what makes a bucket.
    """
    trainable = [(p, parameters[p], i) for p, i in groups_of(voter.param_groups).items() if p in parameters]
    trainable.reverse()
    buckets = plan((p.numel() * p.element_size() for p, _, _ in trainable), capacity)
    batches = [[trainable[i] for i in bucket] for bucket in buckets]
    return [kind(f"bucket{i}", batch, voter, layouts) for i, batch in enumerate(batches, first)]
