"""Under mpirun each rank runs each test; a test passes when it passes on all ranks.

The verdicts are combined after each test, so that a failure on one rank is a failure on all and nobody waits for a rank
that has gone on to the next test. A rank that fails between two collectives of one test still leaves the others
waiting; the time limit on the launch ends that.
"""

import pytest
from mpi4py import MPI

_verdicts = MPI.COMM_WORLD.Dup()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    skipped, failure, result = None, None, None
    try:
        result = yield
    except pytest.skip.Exception as skip:
        skipped = str(skip)
    except BaseException as error:
        failure = error
    texts = _verdicts.allgather(skipped if failure is None else _describe(failure))
    if failure is not None:
        raise failure
    others = [f"rank {rank}: {text}" for rank, text in enumerate(texts) if text is not None and text != skipped]
    if others:
        pytest.fail("failed on other ranks:\n" + "\n".join(others), pytrace=False)
    if skipped is not None:
        pytest.skip(skipped)
    return result


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


@pytest.fixture
def comm():
    return MPI.COMM_WORLD
