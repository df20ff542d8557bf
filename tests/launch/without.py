"""Runs `python -m horovod_sign` as if some modules were not installed: python without.py mpi4py horovod_sign.torch"""

import runpy
import sys

for module in sys.argv[1:]:
    sys.modules[module] = None
sys.argv[1:] = []
runpy.run_module("horovod_sign", run_name="__main__", alter_sys=True)
