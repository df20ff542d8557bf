"""The PyTorch adapter: all that `horovod.torch` has, with votes in place of its sums.

-   import horovod.torch as hvd
+   import horovod_sign.torch as hvd

Or beside it, as `hvs`:

-   optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), 0.1), model.named_parameters())
+   optimizer = hvs.DistributedOptimizer(hvs.Signum(model.parameters(), 0.001), model.named_parameters())
"""

from horovod_sign.building import first_line
from horovod_sign.supported import refuse_older

try:
    import horovod.torch
    import torch
    from horovod.torch import global_process_set  # noqa: F401  (lacking where Horovod has no library for PyTorch)
except ImportError as error:
    raise ImportError(
        f"horovod_sign.torch needs PyTorch and a Horovod built for it ({error}): pip install torch, then "
        + first_line("HOROVOD_WITH_PYTORCH=1")
    ) from error
else:
    refuse_older("horovod_sign.torch", torch=torch.__version__, horovod=horovod.__version__)

from horovod_sign.adopted import adopt
from horovod_sign.rules import Rule
from horovod_sign.statistics import VoteStatistics
from horovod_sign.torch import adversaries, elastic
from horovod_sign.torch.checkpoints import gather_state_dict
from horovod_sign.torch.compression import Compression
from horovod_sign.torch.distributed import DistributedOptimizer
from horovod_sign.torch.optimizers import Lion, SignOptimizer, SignSGD, Signum
from horovod_sign.torch.parameters import broadcast_parameters
from horovod_sign.voting.nodes import node_process_sets

__all__ = [
    "Compression",
    "DistributedOptimizer",
    "Lion",
    "Rule",
    "SignOptimizer",
    "SignSGD",
    "Signum",
    "VoteStatistics",
    "adversaries",
    "broadcast_parameters",
    "elastic",
    "gather_state_dict",
    "node_process_sets",
]
if torch.distributed.is_available():
    from horovod_sign import ddp

    __all__ += ["ddp"]
__all__ += adopt(globals(), horovod.torch, __all__)
