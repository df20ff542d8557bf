"""`python -m horovod_sign` with one list of arguments after another, in the same processes: reports_worker.py --json ""

Frameworks are imported once. After each the first rank prints a line with the exit status; that of a rank is its first
that is not 0.
"""

import runpy
import sys

from horovod_sign.launched import speaks

status = 0
for arguments in sys.argv[1:]:
    sys.argv[1:] = arguments.split()
    try:
        runpy.run_module("horovod_sign", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        status = status or ended.code or 0
        if speaks():
            print(f"exit status {ended.code}", flush=True)
sys.exit(status)
