"""The PyTorch adapter: `import horovod_sign.torch as hvs` beside `import horovod.torch as hvd`.

-   optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), 0.1), model.named_parameters())
+   optimizer = hvs.DistributedOptimizer(hvs.Signum(model.parameters(), 0.001), model.named_parameters())
"""

try:
    import horovod.torch  # noqa: F401
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"horovod_sign.torch needs PyTorch and a Horovod built for it ({error}): pip install torch, then "
        "HOROVOD_WITH_PYTORCH=1 pip install --no-build-isolation horovod"
    ) from error

from horovod_sign.statistics import VoteStatistics
from horovod_sign.torch import adversaries, elastic
from horovod_sign.torch.checkpoints import gather_state_dict
from horovod_sign.torch.compression import Compression
from horovod_sign.torch.distributed import DistributedOptimizer
from horovod_sign.torch.nodes import node_process_sets
from horovod_sign.torch.optimizers import SignSGD, Signum

__all__ = [
    "Compression",
    "DistributedOptimizer",
    "SignSGD",
    "Signum",
    "VoteStatistics",
    "adversaries",
    "elastic",
    "gather_state_dict",
    "node_process_sets",
]
