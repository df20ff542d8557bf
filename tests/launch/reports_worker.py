"""`python -m horovod_sign` with one list of arguments after another, in the same processes: reports_worker.py --json ""

Frameworks are imported once. After each the first rank prints a line with the exit status.
"""

import runpy
import sys

from horovod_sign.launched import speaks

for arguments in sys.argv[1:]:
    sys.argv[1:] = arguments.split()
    try:
        runpy.run_module("horovod_sign", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if speaks():
            print(f"exit status {ended.code}", flush=True)
