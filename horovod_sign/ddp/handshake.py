"""Do all ranks of a process group want the same? Asked before anything is voted on."""

import torch.distributed as dist

from horovod_sign.carriers.process_group import ProcessGroupCollectives
from horovod_sign.voting import handshake
from horovod_sign.voting.handshake import Item
from horovod_sign.voting.protocols import Vote


def group_of(process_group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """The group of the ranks that vote.

    Raises:
        ValueError, TypeError: there is none, so that this rank can only speak for itself.
    """
    if not dist.is_initialized():
        raise ValueError(
            "there is no process group: call torch.distributed.init_process_group before ddp.VoteState, and start the "
            "script by torchrun or mpirun"
        )
    if process_group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(f"rank {dist.get_rank()} is not in the process group: make ddp.VoteState on its ranks alone")
    group = dist.group.WORLD if process_group is None else process_group
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"process_group must be a torch.distributed.ProcessGroup, got {process_group!r}")
    return group


def agree(items: list[Item], error: Exception | None, group: dist.ProcessGroup) -> None:
    """Raises the same error on all ranks unless all bring the same items and none has an error. A collective."""
    collectives = ProcessGroupCollectives(group)
    asked = handshake.agree("ddp.VoteState", items, error, collectives.size)
    try:
        Vote(asked, collectives, "agree").wait()
    except (TypeError, ValueError) as found:
        raise (error or found) from None
