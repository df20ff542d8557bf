"""What scripts give to and read from Horovod's own wrapper: what means nothing for a vote is taken, or says why not."""

import horovod.torch as hvd
import numpy as np
import oracle
import pytest
import torch
import torch_tasks as tasks
from mpi4py import MPI
from ranks import LAST, RANK, SIZE

import horovod_sign.torch as hvs

RANKS = (2,)  # that Horovod's scripts work; that votes are right on other numbers: test_votes.py, test_training.py


def wrapped(optimizer, **options):
    return hvs.DistributedOptimizer(optimizer, **options)


@pytest.mark.fault("predivide")
def test_keywords_that_ask_for_nothing_are_taken():
    """Horovod's example gives its defaults by name. What asks for something is refused, by its name alone."""
    net, nothing = tasks.model(), {"gradient_predivide_factor": 1.0, "num_groups": 0, "groups": None}
    nothing |= {"op": hvd.Average, "compression": hvd.Compression.none, "sparse_as_dense": False}
    optimizer = wrapped(hvs.SignSGD(net.parameters(), 0.01), named_parameters=net.named_parameters(), **nothing)
    tasks.train(net, optimizer, range(2))
    tasks.assert_replicas_identical(net)
    groups = [list(net.parameters())]
    ops = [(f"op={name}", "op", getattr(hvd, name)) for name in ("Adasum", "Min", "Max", "Product")]
    keywords = [("gradient_predivide_factor", 2.0), ("num_groups", 2), ("groups", groups), ("op", 99)]
    for words, name, value in [*ops, *((name, name, value) for name, value in keywords)]:
        with pytest.raises(TypeError, match=f"has no {words}: "):
            wrapped(torch.optim.SGD(net.parameters(), 0.1), **{**nothing, name: value})


@pytest.mark.quick
@pytest.mark.parametrize("op", ["Average", "Sum"])
@pytest.mark.parametrize("kind", ["SGD", "Signum"])
def test_a_script_whose_import_alone_was_changed(op, kind):
    """All of it by one name, with Horovod's keywords; it steps as the same optimizer does beside Horovod's import."""

    def script(hvd, **keywords):
        net = tasks.model(seed=1 + hvd.rank())
        if kind == "SGD":
            optimizer = torch.optim.SGD(net.parameters(), lr=0.01 * hvd.size(), momentum=0.9)
        else:
            optimizer = hvs.Signum(net.parameters(), lr=0.01)
        hvd.broadcast_parameters(net.state_dict(), root_rank=0)
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)
        optimizer = wrapper(optimizer, named_parameters=net.named_parameters(), **keywords)
        tasks.train(net, optimizer, range(3))
        assert hvd.allreduce(torch.tensor(float(hvd.rank())), name="metric").item() == (hvd.size() - 1) / 2
        assert hvd.allgather_object(hvd.rank()) == list(range(hvd.size()))
        tasks.assert_replicas_identical(net)
        return tasks.values(net)

    assert hvs.is_initialized() and hvs.rank() == RANK and hvs.size() == SIZE
    wrapper = hvs.DistributedOptimizer
    keywords = {"compression": hvs.Compression.none, "op": getattr(hvs, op), "gradient_predivide_factor": 1.0}
    tasks.assert_equal_on_all_ranks(script(hvs, **keywords), script(hvd))


def test_passes_are_read_and_set_as_horovods():
    net = tasks.model()
    optimizer = wrapped(hvs.SignSGD(net.parameters(), 0.01), backward_passes_per_step=2)
    assert optimizer.backward_passes_per_step == 2
    optimizer.backward_passes_per_step = 3
    optimizer.zero_grad()
    for step in range(optimizer.backward_passes_per_step):
        tasks.backward(net, step)
    optimizer.step()
    optimizer.set_backward_passes_per_step(1)
    assert optimizer.backward_passes_per_step == 1
    tasks.train(net, optimizer, range(1))
    tasks.assert_replicas_identical(net)
    assert optimizer.process_set is hvd.global_process_set


def test_the_warning_of_a_second_vote_is_found_by_horovods_words():
    """As `warnings.filterwarnings` compares them."""
    net = tasks.model()
    optimizer = wrapped(torch.optim.SGD(net.parameters(), 0.01))
    tasks.backward(net, 0)
    optimizer.synchronize()
    words = r"^optimizer\.step\(\) called without optimizer\.skip_synchronize\(\) context after optimizer\.synchronize"
    with pytest.warns(UserWarning, match=words):
        optimizer.step()


@pytest.mark.fault("sparse")
@pytest.mark.parametrize("transport", ["auto", "exchange", "counts"])
@pytest.mark.parametrize("way", ["step", "synchronize", "closure"])
def test_an_optimizer_that_takes_sparse_gradients_alone(way, transport):
    """SparseAdam gets the votes as a sparse gradient, on all ranks; rows without a vote stay, with their moments."""
    rows = torch.nn.Parameter(torch.from_numpy(oracle.gradients(0, 60, np.float32, edges=False).reshape(20, 3)))
    alone = torch.nn.Parameter(rows.detach().clone())
    optimizer = wrapped(torch.optim.SparseAdam([rows], lr=0.1), transport=transport, sparse_as_dense=False)
    expected = torch.optim.SparseAdam([alone], lr=0.1)

    def loss(step, rank):
        words = torch.tensor([step, step, 7 + rank])
        return (torch.nn.functional.embedding(words, rows, sparse=True) - 0.1 * rank).square().sum()

    def backward(step):
        optimizer.zero_grad()
        value = loss(step, RANK)
        if step != 2 or RANK != LAST:  # once a rank has no gradient
            value.backward()
        return value

    for step in range(4):
        own = [torch.autograd.grad(loss(step, rank), rows)[0].to_dense().numpy() for rank in range(SIZE)]
        if step == 2:
            own[SIZE - 1] = np.zeros_like(own[0])
        alone.grad = torch.from_numpy(oracle.vote(own).astype(np.float32).reshape(20, 3)).to_sparse(1)
        expected.step()
        if way == "closure":
            optimizer.step(lambda step=step: backward(step))
        else:
            backward(step)
        if way == "synchronize":
            optimizer.synchronize()
            with optimizer.skip_synchronize():
                optimizer.step()
        if way == "step":
            optimizer.step()
        tasks.assert_equal_on_all_ranks([rows.detach().numpy()], [alone.detach().numpy()])
    assert rows.grad.coalesce().indices().max() < 7 + SIZE
    mine = rows.detach().numpy()
    tasks.assert_equal_on_all_ranks([mine], [MPI.COMM_WORLD.bcast(mine)])
