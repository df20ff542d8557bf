"""Tests in tests/parallel are rank programs: collected only under an mpirun, where test_parallel.py starts them."""

import os

# What Open MPI and MPICH tell each rank.
under_mpirun = not {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}.isdisjoint(os.environ)
collect_ignore = [] if under_mpirun else ["parallel"]
