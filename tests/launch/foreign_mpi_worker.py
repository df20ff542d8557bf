"""What a training does where mpi4py would load another MPI than Horovod's: started by test_launched.py."""

import sys
import warnings

import horovod.torch as hvd
import numpy as np
import torch

import horovod_sign.torch as hvs
from horovod_sign import __main__ as report
from horovod_sign import majority_vote


def said(function, *arguments) -> str:
    """Type and text of the error that a call raises."""
    try:
        function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


sys.modules["horovod_sign.tensorflow"] = None  # the report need not import it
p = torch.nn.Parameter(torch.zeros(3))
lines = ["before init: " + said(hvs.DistributedOptimizer, hvs.SignSGD([p], 0.1))]
lines.append("majority_vote: " + said(majority_vote, np.ones(3)))
lines.append("node_process_sets: " + said(hvs.node_process_sets))
hvd.init()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    optimizers = [hvs.DistributedOptimizer(hvs.SignSGD([p], 0.1)) for _ in range(2)]
lines.append(f"wrapping: {len(caught)} warning: {caught[0].message if caught else ''}")
p.grad = torch.ones(3)
optimizers[0].step()
lines.append(f"stepped to {p.tolist()} on {hvd.size()}")
if hvd.rank() == 0:
    print(*lines, sep="\n", flush=True)
sys.exit(report.main([]))
