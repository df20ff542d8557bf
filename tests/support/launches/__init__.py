"""Runs test functions on real MPI ranks, many of them in one launch: a pytest plugin in two halves.

`parent` collects tests as usual, one item for each rank count, and carries each item out on the ranks of a `launch`; on
every rank a pytest of its own, with the plugin `rank`, runs what it is told and sends its reports back.

    pytest --- Launch --- mpirun --- rank 0: pytest, rank 1: pytest, ...
              (a socket to each rank: "run this item" goes out, reports come in)
"""
