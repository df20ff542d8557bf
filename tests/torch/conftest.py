"""For the tests of PyTorch."""

import os

# The kernels for GPUs run on CPU tensors by Triton's interpreter. It is asked for where Triton is imported first.
# TRITON_INTERPRET=0 pytest tests/torch/test_devices.py has them run on a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
