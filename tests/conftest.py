"""Tests in tests/parallel are rank programs: collected only under mpirun, where test_parallel.py starts them."""

import os

collect_ignore = [] if "OMPI_COMM_WORLD_SIZE" in os.environ else ["parallel"]
