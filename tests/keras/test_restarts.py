"""Keras checkpoints under mpirun: one file for all ranks, loaded on as many ranks, or on others, or rank 0's alone."""

import zipfile
from pathlib import Path

import horovod.tensorflow as hvd
import keras
import keras_tasks as tasks
import numpy as np
import pytest
from mpi4py import MPI
from ranks import RANK, SIZE, process_sets
from tf_rules import TwoMomenta

import horovod_sign.tensorflow.keras as hvs
from horovod_sign.tensorflow.keras.states import OptimizerStates

RANKS = (2,)  # with momenta of their own, which have a mean

SIGNUM = hvs.Compression.signum(0.5, warmup=True)
KINDS = {
    "Signum": (lambda: hvs.Signum(0.01, 0.5, warmup=True), {}),
    "Adam": (lambda: keras.optimizers.Adam(0.01), {"compression": SIGNUM}),
    "rule": (lambda: hvs.SignOptimizer(0.01, TwoMomenta((0.25, 0.5))), {}),
    "Adam by a rule": (lambda: keras.optimizers.Adam(0.01), {"compression": hvs.Compression.of(TwoMomenta())}),
    "scaled": (lambda: keras.optimizers.LossScaleOptimizer(hvs.Signum(0.01, 0.5), initial_scale=64.0), {}),
}


# Each way to keep momenta: by the optimizer, by the wrapper and of several states, under a loss scale. All five kinds
# are saved and loaded.
WAYS = ["Signum", "Adam by a rule", "scaled"]


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


def equal(left, right) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def assert_equal(left, right):
    """On all ranks, so that none goes on to where it would wait for another."""
    assert MPI.COMM_WORLD.allgather(equal(left, right)) == [True] * SIZE


@pytest.mark.fault("resume")
@pytest.mark.fault("two-models")
@pytest.mark.ranks(1, 2)  # alone too
@pytest.mark.parametrize("kind", KINDS)
def test_one_file_resumes_all_ranks_bit_exactly(kind, path):
    net = trained(kind)
    hvs.save_model(net, path)
    resumed = hvs.load_model(path, **KINDS[kind][1])
    assert_equal(tasks.momenta_of(resumed), tasks.momenta_of(net))
    if SIZE > 1:  # each rank has its own, or the test would show nothing
        assert len(set(MPI.COMM_WORLD.allgather(tasks.momenta_of(net)[0].tobytes()))) == SIZE
    # The callback that starts all ranks alike, in every script, must leave the momenta alone.
    go_on(resumed, [hvs.callbacks.BroadcastGlobalVariablesCallback(0)])
    go_on(net)
    assert_equal(tasks.values(resumed), tasks.values(net))
    assert_equal(tasks.momenta_of(resumed), tasks.momenta_of(net))
    tasks.assert_replicas_identical(tasks.values(net))


@pytest.mark.fault("resume-on-others")
@pytest.mark.parametrize("kind", WAYS)
def test_on_another_number_of_ranks_all_start_from_the_mean(kind, path):
    """Saved by all ranks, loaded by process sets of one rank."""
    net = trained(kind)
    hvs.save_model(net, path)
    mean = [np.mean(MPI.COMM_WORLD.allgather(mine), axis=0) for mine in tasks.momenta_of(net)]
    with process_sets(hvd, *[[rank] for rank in range(SIZE)]) as sets:
        alone = hvs.load_model(path, process_set=sets[RANK], **KINDS[kind][1])
        for got, expected in zip(tasks.momenta_of(alone), mean, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8)
        tasks.assert_replicas_identical(tasks.momenta_of(alone))
        go_on(alone)


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("kind", ["Signum", "SGD"])
def test_a_file_of_the_first_version_loads(kind):
    """Saved on two ranks by the code before rules had states of other names: each has its own again, or the mean."""
    saved = Path(__file__).parents[1] / "support" / "saved" / f"{kind}.keras"
    options = {} if kind == "Signum" else {"compression": hvs.Compression.signum(0.75, warmup=True)}
    net = hvs.load_model(saved, **options)
    kernel, bias = tasks.momenta_of(net)
    filled = np.float32(1 - 0.75**3)
    np.testing.assert_array_equal(kernel, filled * np.array([[1], [[-0.5, 0.5][RANK] if SIZE == 2 else 0]], np.float32))
    np.testing.assert_array_equal(bias, [-filled])
    counter = net.optimizer.iterations if kind == "Signum" else OptimizerStates(net.optimizer).counters[0]
    assert counter.numpy() == 3
    assert tasks.values(net)[0].ravel().tolist() == [0.625 if kind == "Signum" else 0.46875, -2.0]


@pytest.mark.ranks(3)  # a set of two of them
@pytest.mark.parametrize("kind", ["Signum", "Adam"])
def test_a_set_of_ranks_saves_and_loads_by_its_own_numbers(kind, path):
    """Ranks 1 and 2 are 0 and 1 of their set: the first of them writes, and each gets its own momentum back."""
    with process_sets(hvd, [1, 2]) as (pair,):
        if RANK == 0:
            return
        make, options = KINDS[kind]
        options = {**options, "process_set": pair}
        net = tasks.model()
        tasks.fit(net, hvs.DistributedOptimizer(make(), **options), epochs=1)
        hvs.save_model(net, path)
        resumed = hvs.load_model(path, **options)
        assert equal(tasks.momenta_of(resumed), tasks.momenta_of(net))
        both = hvd.allgather_object(tasks.momenta_of(net)[0].tobytes(), name="both", process_set=pair)
        assert both[0] != both[1]


@pytest.mark.fault("resume-from-one")
@pytest.mark.quick
def test_what_rank_0_saved_alone_gives_all_its_momentum(path):
    net = trained("Signum")
    if RANK == 0:
        net.save(path)
    MPI.COMM_WORLD.Barrier()
    loaded = hvs.load_model(path)
    assert_equal(tasks.momenta_of(loaded), MPI.COMM_WORLD.bcast(tasks.momenta_of(net)))
    optimizer = loaded.optimizer
    assert type(optimizer).__name__ == "Signum" and optimizer.momentum == 0.5 and optimizer.warmup
    assert int(optimizer.iterations.numpy()) == tasks.ROWS // tasks.BATCH


@pytest.mark.fault("resume-from-one")
@pytest.mark.parametrize("kind", WAYS)
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
    assert_equal(tasks.momenta_of(resumed), MPI.COMM_WORLD.bcast(tasks.momenta_of(net)))
    assert [int(counter) for counter in OptimizerStates(resumed.optimizer).counters] == [3] * kind.startswith("Adam")
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
        assert equal([v.numpy() for v in plain.optimizer._states[0]], tasks.momenta_of(net))
        with zipfile.ZipFile(second) as archive:
            assert archive.testzip() is None


def test_errors_are_on_all_ranks(tmp_path, path):
    net = trained("Adam")
    with pytest.raises(OSError, match="could not write"):
        hvs.save_model(net, MPI.COMM_WORLD.bcast(str(tmp_path / "nowhere" / "model.keras")))
    with pytest.raises(ValueError, match=r"end the name in \.keras"):
        hvs.save_model(net, "model.h5")
    hvs.save_model(net, path)
    assert not hvs.load_model(path, compile=False).compiled
    with pytest.raises(ValueError, match="give load_model the compression="):
        hvs.load_model(path)
    plain = tasks.model()
    with pytest.raises(ValueError, match=r"call model\.compile"):
        hvs.save_model(plain, path)
    plain.compile("sgd", loss="mse")
    with pytest.raises(TypeError, match=r"made by hvs\.DistributedOptimizer"):
        hvs.save_model(plain, path)


def test_a_file_that_cannot_be_written_leaves_the_older_one(path, monkeypatch):
    net = trained("Signum")
    hvs.save_model(net, path)
    before = tasks.momenta_of(net)
    go_on(net)

    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match=r"could not write .*no space left"):
        hvs.save_model(net, path)
    monkeypatch.undo()
    assert_equal(tasks.momenta_of(hvs.load_model(path)), before)
    MPI.COMM_WORLD.Barrier()
    assert [file.name for file in Path(path).parent.iterdir()] == ["model.keras"]


def test_a_model_without_an_optimizer_is_refused(path):
    if RANK == 0:
        tasks.model().save(path)
    MPI.COMM_WORLD.Barrier()
    with pytest.raises(ValueError, match="holds no optimizer"):
        hvs.load_model(path)
