"""Keras checkpoints under mpirun: one file for all ranks, loaded on as many ranks, or on others, or rank 0's alone."""

import zipfile

import horovod.tensorflow as hvd
import keras
import keras_tasks as tasks
import numpy as np
import pytest
from mpi4py import MPI
from ranks import RANK, SIZE, process_sets

import horovod_sign.tensorflow.keras as hvs
from horovod_sign.tensorflow.keras.momenta import Momenta

RANKS = (1, 3)  # alone; several, with momenta of their own

SIGNUM = hvs.Compression.signum(0.5, warmup=True)
KINDS = {
    "Signum": (lambda: hvs.Signum(0.01, 0.5, warmup=True), {}),
    "Adam": (lambda: keras.optimizers.Adam(0.01), {"compression": SIGNUM}),
    "scaled": (lambda: keras.optimizers.LossScaleOptimizer(hvs.Signum(0.01, 0.5), initial_scale=64.0), {}),
}


@pytest.fixture
def path(tmp_path):
    """A file name that is the same on all ranks."""
    return MPI.COMM_WORLD.bcast(str(tmp_path / "model.keras"))


def trained(kind, epochs=1, callbacks=()):
    make, options = KINDS[kind]
    net = tasks.model()
    tasks.fit(net, hvs.DistributedOptimizer(make(), **options), callbacks, epochs)
    return net


def go_on(net, callbacks=()):
    x, y = tasks.data(RANK)
    net.fit(x, y, batch_size=tasks.BATCH, shuffle=False, verbose=0, callbacks=list(callbacks))


def momenta(net) -> list[np.ndarray]:
    return [slot.numpy().copy() for slot in Momenta(net.optimizer).slots]


def equal(left, right) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def assert_equal(left, right):
    """On all ranks, so that none goes on to where it would wait for another."""
    assert MPI.COMM_WORLD.allgather(equal(left, right)) == [True] * SIZE


@pytest.mark.parametrize("kind", KINDS)
def test_one_file_resumes_all_ranks_bit_exactly(kind, path):
    net = trained(kind)
    hvs.save_model(net, path)
    resumed = hvs.load_model(path, **KINDS[kind][1])
    assert_equal(momenta(resumed), momenta(net))
    if SIZE > 1:  # each rank has its own, or the test would show nothing
        assert len(set(MPI.COMM_WORLD.allgather(momenta(net)[0].tobytes()))) == SIZE
    # The callback that starts all ranks alike, in every script, must leave the momenta alone.
    go_on(resumed, [hvs.callbacks.BroadcastGlobalVariablesCallback(0)])
    go_on(net)
    assert_equal(tasks.values(resumed), tasks.values(net))
    assert_equal(momenta(resumed), momenta(net))
    tasks.assert_replicas_identical(tasks.values(net))


@pytest.mark.parametrize("kind", KINDS)
def test_on_another_number_of_ranks_all_start_from_the_mean(kind, path):
    """Saved by all ranks, loaded by process sets of one rank."""
    if SIZE == 1:
        pytest.skip("one rank has no other number of ranks")
    net = trained(kind)
    hvs.save_model(net, path)
    mean = [np.mean(MPI.COMM_WORLD.allgather(mine), axis=0) for mine in momenta(net)]
    with process_sets(hvd, *[[rank] for rank in range(SIZE)]) as sets:
        alone = hvs.load_model(path, process_set=sets[RANK], **KINDS[kind][1])
        for got, expected in zip(momenta(alone), mean, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8)
        tasks.assert_replicas_identical(momenta(alone))
        go_on(alone)


def test_what_rank_0_saved_alone_gives_all_its_momentum(path):
    net = trained("Signum")
    if RANK == 0:
        net.save(path)
    MPI.COMM_WORLD.Barrier()
    assert_equal(momenta(hvs.load_model(path)), MPI.COMM_WORLD.bcast(momenta(net)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_that_loads_alone_gives_its_momentum_to_the_others(kind, path):
    """As in Horovod's examples: rank 0 reads the checkpoint, and the callback tells the others."""
    net = trained(kind)
    hvs.save_model(net, path)
    make, options = KINDS[kind]
    if RANK == 0:
        resumed = hvs.load_model(path, **options)
    else:
        resumed = tasks.model()
        resumed.compile(hvs.DistributedOptimizer(make(), **options), loss="mse")
    callback = hvs.callbacks.BroadcastGlobalVariablesCallback(0)
    callback.set_model(resumed)
    callback.on_train_begin()
    assert_equal(momenta(resumed), MPI.COMM_WORLD.bcast(momenta(net)))
    assert_equal([v.numpy() for v in resumed.weights], MPI.COMM_WORLD.bcast([v.numpy() for v in net.weights]))
    go_on(resumed)
    tasks.assert_replicas_identical(tasks.values(resumed))


def test_saved_each_epoch_and_read_by_keras_alone(tmp_path):
    folder = MPI.COMM_WORLD.bcast(str(tmp_path))
    callbacks = [
        hvs.callbacks.MetricAverageCallback(),
        hvs.callbacks.SaveModelCallback(f"{folder}/{{epoch}}-{{loss:.3f}}.keras"),
    ]
    net = trained("Signum", 2, callbacks)
    if RANK == 0:
        first, second = sorted(tmp_path.iterdir())
        assert (first.name[:2], second.name[:2]) == ("1-", "2-")
        plain = keras.saving.load_model(second)
        assert type(plain.optimizer) is hvs.Signum
        assert equal(tasks.values(plain), tasks.values(net))
        assert equal([v.numpy() for v in plain.optimizer._momenta], momenta(net))
        with zipfile.ZipFile(second) as archive:
            assert archive.testzip() is None


def test_errors_are_on_all_ranks(tmp_path, path):
    net = trained("Adam")
    with pytest.raises(OSError, match="could not write"):
        hvs.save_model(net, MPI.COMM_WORLD.bcast(str(tmp_path / "nowhere" / "model.keras")))
    with pytest.raises(ValueError, match=r"end the name in \.keras"):
        hvs.save_model(net, "model.h5")
    hvs.save_model(net, path)
    with pytest.raises(ValueError, match="give load_model the compression="):
        hvs.load_model(path)
    plain = tasks.model()
    with pytest.raises(ValueError, match=r"call model\.compile"):
        hvs.save_model(plain, path)
    plain.compile("sgd", loss="mse")
    with pytest.raises(TypeError, match=r"made by hvs\.DistributedOptimizer"):
        hvs.save_model(plain, path)
