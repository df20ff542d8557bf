"""What the documentation has of NumPy and mpi4py runs."""

import documents

RANKS = (2,)  # the ranks of a communicator's halves vote alone


def test_pages_run():
    documents.run_page("numpy.md")
