"""`transport="device"`: what stays on a device, by Horovod's operations or a process group, equals the exchange.

Without a GPU tensors are on the CPU, in the hands of the kernels for devices, carried by Horovod's operations for CPUs
and by Gloo: the same way through everything but NCCL.
"""

import os

import horovod.torch as hvd
import pytest
import torch
import torch.distributed as dist
from device_scripts import (
    DEVICE,
    ON_GPU,
    ON_ONE_DEVICE,
    Script,
    assert_the_same,
    plain,
    scaled,
)
from kernel_sets import use_kernels
from mpi4py import MPI
from ranks import LAST, RANK, SIZE

import horovod_sign.torch as hvs
from horovod_sign.carriers.process_group import DeviceGroupCollectives
from horovod_sign.tensors import resident
from horovod_sign.torch import device
from horovod_sign.torch.collectives import DeviceCollectives

RANKS = (2,)  # where votes tie; odd, with chunks of which the last is short, where a test says so
pytestmark = pytest.mark.skipif(ON_GPU and torch.cuda.device_count() < SIZE, reason="NCCL has one rank a GPU")

CARRIERS = {"Horovod": DeviceCollectives, "torch.distributed": DeviceGroupCollectives}


@pytest.fixture(params=CARRIERS)
def carrier(request, tmp_path, monkeypatch):
    """What carries votes, and whether they start in backward."""
    use_kernels(monkeypatch, "operations")
    if request.param == "Horovod":
        yield DeviceCollectives
        return
    path = MPI.COMM_WORLD.bcast(str(tmp_path / "store"))
    dist.init_process_group("nccl" if ON_GPU else "gloo", store=dist.FileStore(path, SIZE), rank=RANK, world_size=SIZE)
    yield DeviceGroupCollectives
    dist.destroy_process_group()


def usual(carrier) -> tuple[dict, dict]:
    """Options to compare: a process group's votes start in `step`, so that gradients can be changed before."""
    alike = {"overlap": carrier is DeviceCollectives}
    return {"transport": "exchange", **alike}, {"transport": "device", **alike}


@pytest.mark.filterwarnings("ignore:.*is NaN in:RuntimeWarning")
@pytest.mark.parametrize("script", ON_ONE_DEVICE, ids=lambda script: script.__name__)
def test_scripts(script, carrier, monkeypatch):
    assert_the_same(script, monkeypatch, usual(carrier))


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("abstain", [True, False])
def test_kinds_and_dtypes(abstain, carrier, monkeypatch):
    """Each kind with each abstention, each dtype with one kind: what carries votes knows of neither."""
    for kind, dtype in (("SignSGD", "float32"), ("Signum", "bfloat16"), ("Lion", "float16"), ("SGD", "float64")):
        options = {"kind": kind, "dtype": getattr(torch, dtype), "abstain": abstain}
        assert_the_same(plain, monkeypatch, usual(carrier), **options)


def test_votes_of_one_bit_of_a_rank_that_overflows(carrier, monkeypatch):
    """It abstains as a whole, which one plane cannot say."""
    options = [{**each, "abstain": False} for each in usual(carrier)]
    assert_the_same(scaled, monkeypatch, options)


@pytest.mark.parametrize("abstain", [True, False])
def test_by_interpreted_kernels(abstain, monkeypatch):
    assert_the_same(plain, monkeypatch, usual(DeviceCollectives), "triton", kind="Signum", abstain=abstain)


def test_what_carries(carrier, monkeypatch):
    """A process group, if the script has made one of the same ranks; as many bytes are sent in each step."""
    script = Script(DEVICE, transport="device")
    assert type(script.optimizer._votes.pipeline._collectives) is carrier
    sent = []
    for step in range(2):
        script.step(step)
        sent.append(script.optimizer.bytes_sent)
    assert sent[0] == sent[1] > 0
    if carrier is DeviceGroupCollectives and RANK == LAST:  # what one rank lacks, none takes
        monkeypatch.setattr(dist, "is_initialized", lambda: False)
    assert type(Script(DEVICE, transport="device").optimizer._votes.pipeline._collectives) is DeviceCollectives


def raised_on_all(error: BaseException | None) -> list[str]:
    return MPI.COMM_WORLD.allgather(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("what", ["frozen", "grown"])
def test_what_happens_on_one_rank_reaches_all(what, carrier):
    """By the word of the hosts, since no host reads a ballot."""
    script, error = Script(DEVICE, transport="device"), None
    script.step(0)
    if RANK == LAST and what == "frozen":
        script.parameters[1].requires_grad_(False)
    if RANK == LAST and what == "grown":
        script.parameters[1].data = torch.zeros(7, device=DEVICE)
        script.given = lambda step: [torch.ones_like(p) for p in script.parameters]
    try:
        script.step(1)
        script.step(2)
    except (RuntimeError, ValueError) as found:
        error = found
    expected = "freeze, add or replace parameters on all" if what == "frozen" else "now has 7, shape"
    assert all(expected in each for each in raised_on_all(error)), raised_on_all(error)


@pytest.mark.fault("join-exchange")
def test_joined_ranks_are_one_clear_sentence(carrier):
    script = Script(DEVICE, transport="device")
    if RANK > 0:
        with pytest.raises(RuntimeError, match=r'called hvd\.join\(\).*transport="counts"'):
            script.step(0)
    hvd.join()


def test_two_optimizers_stepped_in_an_order_that_differs_between_ranks(carrier):
    # Comparisons of replicas that ranks begin for different optimizers would stay in Horovod's engine.
    scripts = [Script(DEVICE, transport="device", check_replicas=0) for _ in range(2)]
    for step in range(2):
        for script in scripts:
            script.optimizer.zero_grad()
            script.loss(step).backward()
        if carrier is DeviceGroupCollectives:  # which has one order
            with pytest.raises(RuntimeError, match="ranks step their optimizers in different orders"):
                scripts[RANK % 2].optimizer.step()
            return
        for script in scripts if RANK % 2 else reversed(scripts):
            script.optimizer.step()
    alone = Script(DEVICE, transport="device")
    alone.step(0)
    alone.step(1)
    for script in scripts:
        assert all(map(torch.equal, script.parameters, alone.parameters))


def test_a_rank_whose_gradients_have_nan_is_told(carrier):
    script = Script(DEVICE, transport="device")
    script.optimizer.zero_grad()
    script.loss(0).backward()
    if RANK == 1:
        script.parameters[2].grad[:5] = torch.nan
        script.optimizer = script.wrap("SignSGD", transport="device", overlap=False)
        with pytest.warns(RuntimeWarning, match=r"rank 1: the gradient of parameter 2 of group 0 is NaN in 5 of 130"):
            script.optimizer.step()
            assert script.optimizer.vote_statistics().nans == 5
    else:
        script.optimizer = script.wrap("SignSGD", transport="device", overlap=False)
        script.optimizer.step()
        assert script.optimizer.vote_statistics().nans == 0


def test_what_cannot_work_is_one_sentence_on_all_ranks(carrier, monkeypatch):
    with pytest.raises(ValueError, match=r'transport="device" is for votes of ranks'):
        Script(DEVICE, transport="device", hierarchical=True)
    if not ON_GPU:
        with monkeypatch.context() as on_this_rank:
            if RANK == LAST:
                use_kernels(on_this_rank, "native")
            with pytest.raises(ValueError, match=r"keeps votes on a GPU, but parameter 0 of group 0 is on cpu"):
                Script(DEVICE, transport="device")
        with pytest.raises(ValueError, match=r'transport="device" needs NCCL on all ranks'):
            device.carrier(hvd.global_process_set, torch.device("cuda"), "nccl")
    p, q = torch.zeros(1), torch.zeros(1, device="meta")
    with pytest.raises(ValueError, match=r"all parameters on one device, but there is parameter p on cpu, parameter q"):
        resident.device_of({p: "p", q: "q"})
    with pytest.raises(ValueError, match=r"transport must be one of 'auto', 'exchange', 'counts', 'device'"):
        Script(DEVICE, transport="devices")
    monkeypatch.setitem(os.environ, "HOROVOD_ELASTIC", "1")
    with pytest.raises(ValueError, match=r'transport="device" cannot be used in an elastic job'):
        hvs.DistributedOptimizer(hvs.SignSGD([torch.nn.Parameter(p)], 0.1), transport="device")
