"""Loops as users write them: what Horovod's scripts do works, and what cannot work is one sentence on all ranks."""

import horovod.torch as hvd
import numpy as np
import pytest
import torch
import torch_tasks as tasks
from ranks import LAST, RANK

import horovod_sign.torch as hvs

RANKS = (1, 3)  # alone, where nothing is sent; one rank that does something and others that do not

OURS = ("SignSGD", "Signum")


def wrap(optimizer, net, **options):
    return hvs.DistributedOptimizer(optimizer, named_parameters=net.named_parameters(), **options)


def plain_optimizer(kind, parameters):
    return getattr(hvs if kind in OURS else torch.optim, kind)(parameters, 0.01)


def assert_equal(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def names_that_raise(net, error):
    yield from list(net.named_parameters())[:2]
    raise error


class Undecided:
    """Neither true nor false, as an array of several elements."""

    def __bool__(self):
        raise RuntimeError("neither true nor false")


WRONG = {
    "no compression": ({"compression": hvd.Compression.none}, TypeError, "compression must be hvs.Compression.signsgd"),
    "float16": ({"compression": hvd.Compression.fp16}, TypeError, "compression must be hvs.Compression.signsgd"),
    "not called": ({"compression": hvs.Compression.signum}, TypeError, "compression must be hvs.Compression.signsgd"),
    "op by position": ({"process_set": hvd.Average}, TypeError, "Horovod's op, given by position"),
    "no process set": ({"process_set": "all"}, TypeError, "process_set must be a horovod.torch.ProcessSet"),
    "op": ({"op": hvd.Sum}, TypeError, "has no op"),
    "text": ({"bucket_cap_mb": "25"}, TypeError, "bucket_cap_mb must be a number"),
    "infinity": ({"bucket_cap_mb": float("inf")}, ValueError, "bucket_cap_mb must be more than 0 and finite"),
    "undecided": ({"abstain": Undecided()}, RuntimeError, "neither true nor false"),
    "iterator": ({"named_parameters": RuntimeError("out of names")}, RuntimeError, "out of names"),
    "key": ({"named_parameters": KeyError("words")}, KeyError, "words"),
    "no iterator": ({"named_parameters": 5}, TypeError, "not iterable"),
    "no parameters": ({"named_parameters": [("weight", [])]}, TypeError, "unhashable"),
    "passes": ({"backward_passes_per_step": None}, ValueError, "integer of at least 1"),
    "scaler": ({"grad_scaler": "scaler"}, TypeError, "grad_scaler must be"),
    "no optimizer": ({"optimizer": None}, TypeError, "must be a torch.optim.Optimizer"),
}


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("what", WRONG)
def test_what_goes_wrong_on_one_rank_while_wrapping_reaches_all(what, everywhere):
    wrong, kind, words = WRONG[what]
    net = tasks.model()
    options = {"optimizer": torch.optim.SGD(net.parameters(), 0.1), "named_parameters": net.named_parameters()}
    if everywhere or RANK == LAST:
        options |= wrong
        if isinstance(options["named_parameters"], Exception):
            options["named_parameters"] = names_that_raise(net, options["named_parameters"])
        with pytest.raises(kind, match=words):
            hvs.DistributedOptimizer(**options)
    else:
        with pytest.raises(
            TypeError if kind is TypeError else ValueError, match=rf"rank {LAST} cannot vote: .*{words}"
        ):
            hvs.DistributedOptimizer(**options)


def test_what_goes_wrong_on_one_rank_with_a_new_group_reaches_all():
    net = tasks.model()
    optimizer = wrap(hvs.SignSGD(net[0].parameters(), 0.01), net)

    def parameters():
        yield from net[3].parameters()
        raise RuntimeError("out of parameters")

    with pytest.raises(RuntimeError if RANK == LAST else ValueError, match="out of parameters"):
        optimizer.add_param_group({"params": parameters() if RANK == LAST else list(net[3].parameters())})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": list(net[3].parameters())})
    train(net, optimizer, range(2))


def train(net, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        tasks.backward(net, step)
        optimizer.step()
    tasks.assert_replicas_identical(net)
