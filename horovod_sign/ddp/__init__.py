"""Votes for DistributedDataParallel: a communication hook that votes on its gradient buckets. No Horovod is needed.

    from horovod_sign import ddp

    model = DistributedDataParallel(net)
    model.register_comm_hook(ddp.VoteState(rule=ddp.signum(momentum=0.9)), ddp.vote_hook)

Each rank sends one bit a coordinate, and `backward` leaves the majority vote, -1, 0 or +1, as the gradient, for any
optimizer: torch.optim.SGD(lr=0.001) then is signSGD or Signum by majority vote, and weight_decay is decoupled.
"""

from horovod_sign.supported import refuse_older

try:
    import torch
except ImportError as error:
    raise ImportError(f"horovod_sign.ddp needs PyTorch ({error}): pip install torch") from error
else:
    refuse_older("horovod_sign.ddp", torch=torch.__version__)

if not torch.distributed.is_available():
    raise ImportError("horovod_sign.ddp needs a PyTorch with torch.distributed, which this one was built without")

from horovod_sign.ddp.hook import vote_hook
from horovod_sign.ddp.state import VoteState
from horovod_sign.rules import Rule, lion, signsgd, signum
from horovod_sign.statistics import VoteStatistics

__all__ = ["Rule", "VoteState", "VoteStatistics", "lion", "signsgd", "signum", "vote_hook"]
