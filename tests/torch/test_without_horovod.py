"""`hvs.DistributedOptimizer` before `hvd.init()`: one sentence. In a process of its own, which never initialises it."""

import subprocess
import sys

import pytest

pytest.importorskip("horovod.torch")

PROGRAM = """
import torch
import horovod_sign.torch as hvs

hvs.DistributedOptimizer(hvs.SignSGD([torch.nn.Parameter(torch.zeros(3))], 0.1))
"""


def test_horovod_not_initialised_is_one_sentence():
    finished = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=240)
    assert finished.returncode != 0
    assert "ValueError: Horovod is not initialised: call hvd.init() before" in finished.stderr.splitlines()[-1]
