"""What `transport` means: the protocol that votes travel by, and what carries it."""

from collections.abc import Iterable
from typing import Any

import horovod.torch as hvd
import torch

from horovod_sign.torch import device, direct
from horovod_sign.torch.collectives import HorovodCollectives
from horovod_sign.torch.hierarchy import NodeCollectives
from horovod_sign.voting.choice import choose
from horovod_sign.voting.collectives import Collectives
from horovod_sign.voting.nodes import Nodes


def carriers(
    parameters: Iterable[torch.Tensor], options: Any, name: str, agreed: bool, nodes: Nodes | None = None
) -> tuple[str, Collectives]:
    """The name of the protocol, and what carries its requests. A collective, unless this rank is alone.

    Args:
        parameters: those that are voted on.
        options: the `votes.Options`, of which `transport` may be "auto".
        name: unique among optimizers, the same on all ranks.
        agreed: whether all ranks are here. If not, the job is elastic: ranks come and go, and the choice must not hang
            on how many there are.
        nodes: those that vote, instead of ranks.
    """
    if options.transport == "device":  # of all parameters: all ranks have said so
        where = next((p.device for p in parameters), torch.device("cpu"))
        return "device", device.carrier(options.process_set, where, name)
    engine = HorovodCollectives(options.process_set) if nodes is None else NodeCollectives(nodes)
    if options.transport != "auto":
        return options.transport, engine
    if not agreed or engine.size == 1:
        return "exchange", engine
    coordinates = sum(p.numel() for p in parameters)
    if nodes is not None:
        return choose(coordinates, engine.size, options.abstain, can_go_direct=False), engine
    able = torch.tensor([int(direct.available(options.process_set))], device="cpu")
    able = bool(hvd.allreduce(able, name=f"{name}.able", op=hvd.Min, process_set=options.process_set))
    way = choose(coordinates, engine.size, options.abstain, able)
    if way != "direct":
        return way, engine
    free = torch.tensor(direct.communicators.free(), device="cpu")  # as long on all ranks
    if len(free):
        free = hvd.allreduce(free, name=f"{name}.free", op=hvd.Min)
    return "exchange", direct.DirectCollectives(name, free.tolist())
