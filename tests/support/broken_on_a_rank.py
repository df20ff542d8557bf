"""Tests that go wrong on one rank in every way, for test_launches.py, which reads what the report says of them."""

import ctypes
import os

import pytest
from ranks import RANK

RANKS = (3,)


def test_good_before(comm):
    assert comm.allreduce(1) == 3


def test_assertion():
    print("said by", RANK)
    assert RANK != 2, "rank 2 is wrong"


@pytest.mark.limit(2)
def test_exception(comm):
    if RANK == 2:
        raise KeyError("oops")
    comm.Barrier()


def test_exit(comm):
    if RANK == 2:
        os._exit(3)
    comm.Barrier()


@pytest.mark.limit(2)
def test_endless(comm):
    while RANK == 2:
        pass
    comm.Barrier()


def test_crash(comm):
    if RANK == 2:
        ctypes.string_at(0)
    comm.Barrier()


def test_skipped_on_one():
    if RANK == 2:
        pytest.skip("not here")


def test_skipped():
    pytest.skip("nowhere")


def test_good_after(comm):
    assert comm.allreduce(1) == 3
