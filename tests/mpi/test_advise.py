"""What `python -m horovod_sign advise` measures on ranks, which all of them must agree on."""

import math

from horovod_sign.advise import command, measure
from horovod_sign.advise.model import predict

RANKS = (2, 3)  # a number that collectives like, and one that they do not


def test_speeds_are_positive_and_those_of_all(comm, monkeypatch):
    monkeypatch.setattr(measure, "MOST", 2**18)  # briefly
    where = measure.layout(comm)
    assert where == (comm.size, comm.size, 1)
    speeds = measure.speeds(comm, command._op_seconds(comm))
    assert speeds.between is None and speeds.leaders is None and 0 < speeds.op < 1
    for way in speeds.inside.values():
        assert 0 < way.latency < 1 and 0 < way.per_byte < 1e-3
    assert 0 < speeds.copy < 1e-3 and 0 < speeds.vote < 1e-3
    assert comm.allgather(speeds) == [speeds] * comm.size
    assert all(math.isfinite(predict(method, 10**6, where, speeds)) for method in ("float32", "exchange", "counts"))


def test_several_hosts(comm, monkeypatch):
    """Each rank a host of its own, as far as the measurement goes."""
    monkeypatch.setattr(measure, "MOST", 2**18)
    monkeypatch.setattr(measure, "_of_one_host", lambda comm: comm.Split(comm.rank, 0))
    where = measure.layout(comm)
    assert where == (comm.size, 1, comm.size)
    speeds = measure.speeds(comm, 1e-3)
    assert speeds.inside is None and speeds.leaders is speeds.between
    assert comm.allgather(speeds) == [speeds] * comm.size
