"""Models that their first batch builds, and models with optimizers of their own: all ranks start alike, as in NumPy."""

import horovod.tensorflow as hvd
import keras
import keras_tasks as tasks
import numpy as np
import pytest
import simulation
import tensorflow as tf
from mpi4py import MPI
from ranks import LAST, RANK, SIZE

import horovod_sign.tensorflow.keras as hvs
from horovod_sign.tensorflow import DistributedGradientTape
from horovod_sign.tensorflow.keras.states import OptimizerStates

RANKS = (2,)  # a root that is not the first, and one that has what another has not; majorities: test_training.py

BATCHES = tasks.EPOCHS * tasks.ROWS // tasks.BATCH


def dense():
    """A layer of three units that starts at another number on each rank."""
    return keras.layers.Dense(3, kernel_initializer=keras.initializers.Constant(start_of(RANK)))


def start_of(rank):
    return 0.25 * (rank + 1)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = dense()

    def call(self, x):
        return self.dense(x)


class OwnStep(Subclassed):
    """With a training step of its own."""

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self(data[0], training=True) - data[1]))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


class OwnTape(Subclassed):
    """With a training step that votes by a tape."""

    def __init__(self):
        super().__init__()
        self.compression = hvs.Compression.signum(0.5)

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self(data[0], training=True) - data[1]))
        tape = DistributedGradientTape(tape, compression=self.compression)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


MODELS = {
    "Sequential": lambda: keras.Sequential([dense()]),
    "subclassed": Subclassed,
    "nested": lambda: keras.Sequential([keras.layers.Flatten(), keras.Sequential([dense()])]),
    "own step": OwnStep,
    "own tape": OwnTape,
    "built": lambda: keras.Sequential([keras.Input((4,)), dense()]),
}


class Simulation(tasks.Simulation):
    """As all start: in the first batch with weights of their own if the model is not built, then with the root's."""

    def __init__(self, root, built):
        super().__init__(simulation.signum(0.5))
        starts = [[np.full((4, 3), start_of(rank), np.float32), np.zeros(3, np.float32)] for rank in range(SIZE)]
        self._starts, self._root = [starts[root]] * SIZE if built else starts, root

    def train(self, epochs=tasks.EPOCHS):
        batches = [slice(i, i + tasks.BATCH) for i in range(0, tasks.ROWS, tasks.BATCH)]
        first = []
        for rank in range(SIZE):
            self._simulated.x = self._starts[rank]
            first.append(self._gradients(*(a[batches[0]] for a in tasks.data(rank))))
        self._simulated.x = [x.copy() for x in self._starts[self._root]]
        self._batch(first)
        for batch in (batches * epochs)[1:]:
            self._batch([self._gradients(*(a[batch] for a in tasks.data(rank))) for rank in range(SIZE)])
        return self._simulated.x


def signum(**options):
    return hvs.DistributedOptimizer(hvs.Signum(0.01, 0.5, **options))


def plain(**_):
    return keras.optimizers.SGD(0.01)


@pytest.mark.fault("unbuilt")
@pytest.mark.parametrize(("kind", "root"), [*((kind, "last") for kind in MODELS), ("Sequential", "first")])
def test_fit_equals_the_simulation(kind, root):
    net, root = MODELS[kind](), LAST if root == "last" else 0
    optimizer = plain() if kind == "own tape" else signum()
    tasks.fit(net, optimizer, [hvs.callbacks.BroadcastGlobalVariablesCallback(root)])
    expected = Simulation(root, kind == "built").train()
    for value, simulated in zip(tasks.values(net), expected, strict=True):
        np.testing.assert_allclose(value, simulated, rtol=1e-4, atol=1e-5)
    tasks.assert_replicas_identical(tasks.values(net))


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"steps_per_execution": 2}], ids=str)
@pytest.mark.parametrize("kind", ["Adam", "Signum, accumulation", "loss scale"])
def test_state_of_optimizers_is_alike_too(kind, options):
    optimizers = {
        "Adam": lambda: hvs.DistributedOptimizer(keras.optimizers.Adam(0.01), compression=hvs.Compression.signum()),
        "Signum, accumulation": lambda: signum(gradient_accumulation_steps=2),
        "loss scale": lambda: hvs.DistributedOptimizer(keras.optimizers.LossScaleOptimizer(hvs.Signum(0.01, 0.5))),
    }
    net = Subclassed()
    optimizer = optimizers[kind]()
    tasks.fit(net, optimizer, [hvs.callbacks.BroadcastGlobalVariablesCallback(0)], **options)
    mine = {id(slot) for slot in OptimizerStates(optimizer).slots}
    shared = [v.numpy() for v in [*net.weights, *optimizer.variables] if id(v.value) not in mine]
    tasks.assert_replicas_identical(shared)
    steps = BATCHES // 2 if "accumulation" in kind else BATCHES
    assert int(keras.ops.convert_to_numpy(optimizer.iterations)) == steps


@pytest.mark.fault("unbuilt")
def test_a_rank_that_has_loaded_what_others_have_yet_to_build(tmp_path):
    """Its weights and its momentum go to all as they were: the batch in which the others were built changes neither."""
    trained = keras.Sequential([keras.Input((4,)), dense()])
    tasks.fit(trained, signum(), [hvs.callbacks.BroadcastGlobalVariablesCallback(0)])
    path = MPI.COMM_WORLD.bcast(str(tmp_path / "model.keras"))
    hvs.save_model(trained, path)
    if RANK == 0:
        net = hvs.load_model(path)
    else:
        net = keras.Sequential([dense()])
        net.compile(signum(), loss="mse")
    found = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if not found:
                found.append(
                    ([w.numpy() for w in net.weights], [m.numpy() for m in OptimizerStates(net.optimizer).slots])
                )

    x, y = tasks.data(RANK)
    callbacks = [hvs.callbacks.BroadcastGlobalVariablesCallback(0), Look()]
    net.fit(x, y, batch_size=tasks.BATCH, shuffle=False, verbose=0, callbacks=callbacks)
    tasks.assert_replicas_identical(tasks.values(net))
    expected = MPI.COMM_WORLD.bcast(([w.numpy() for w in trained.weights], tasks.momenta_of(trained)))
    for value, other in zip([*found[0][0], *found[0][1]], [*expected[0], *expected[1]], strict=True):
        np.testing.assert_array_equal(value, other)


@pytest.mark.fault("unbuilt")
def test_saved_before_the_first_fit(tmp_path):
    """A model that is not built has no weights; its file is that of Keras, and it can be trained afterwards."""
    net, path = keras.Sequential([dense()]), MPI.COMM_WORLD.bcast(str(tmp_path / "model.keras"))
    net.compile(signum(), loss="mse")
    hvs.save_model(net, path)
    for each in (net, hvs.load_model(path)):
        x, y = tasks.data(RANK)
        callback = hvs.callbacks.BroadcastGlobalVariablesCallback(0)
        each.fit(x, y, batch_size=tasks.BATCH, shuffle=False, verbose=0, callbacks=[callback])
        assert len(OptimizerStates(each.optimizer).slots) == 2
        tasks.assert_replicas_identical(tasks.values(each))
    odd = keras.Sequential([*([keras.Input((4,))] if RANK == LAST else []), dense()])
    odd.compile(signum(), loss="mse")
    with pytest.raises(ValueError, match=rf"save_model: all ranks must bring the same.*rank {LAST}"):
        hvs.save_model(odd, path)


def test_saved_after_each_epoch_of_a_model_that_was_not_built(tmp_path):
    folder = MPI.COMM_WORLD.bcast(str(tmp_path))
    callbacks = [
        hvs.callbacks.BroadcastGlobalVariablesCallback(0),
        hvs.callbacks.SaveModelCallback(f"{folder}/{{epoch}}.keras"),
    ]
    net = keras.Sequential([dense()])
    tasks.fit(net, signum(gradient_accumulation_steps=3), callbacks)
    loaded = hvs.load_model(f"{folder}/{tasks.EPOCHS}.keras")
    for value, other in zip(
        [*tasks.values(loaded), *tasks.momenta_of(loaded)], [*tasks.values(net), *tasks.momenta_of(net)], strict=True
    ):
        np.testing.assert_array_equal(value, other)


@pytest.mark.fault("several-optimizers")
def test_one_callback_for_several_models():
    """Cross-validation: each model that a callback is given starts alike, also one whose weights are made anew."""
    callbacks = [
        hvs.callbacks.BroadcastGlobalVariablesCallback(LAST),
        hvs.callbacks.MetricAverageCallback(),
        hvs.callbacks.VoteStatisticsCallback(),
    ]
    for kind in ("built", "Sequential", "built"):
        net = MODELS[kind]()
        tasks.fit(net, signum(), callbacks)
        tasks.assert_replicas_identical(tasks.values(net))
    net.layers[0].kernel.assign(np.full((4, 3), start_of(RANK)))
    tasks.fit(net, signum(), callbacks)
    tasks.assert_replicas_identical(tasks.values(net))


def test_a_warm_up_knows_the_steps_of_each_model():
    rates = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: rates.append(float(net.optimizer.learning_rate.numpy()))
    )
    warmup = hvs.callbacks.LearningRateWarmupCallback(0.01, warmup_epochs=1)
    for batch_size, steps in ((tasks.ROWS, 1), (tasks.ROWS // 4, 4)):
        rates.clear()
        net = tasks.model()
        net.compile(signum(), loss="mse")
        net.fit(*tasks.data(RANK), batch_size=batch_size, verbose=0, callbacks=[warmup, record])
        expected = [0.01 / SIZE * (1 + (batch + 1) / steps * (SIZE - 1)) for batch in range(steps)]
        np.testing.assert_allclose(rates, expected, rtol=1e-6)


class GAN(keras.Model):
    """Two models with optimizers of their own, of names of their own. Keras gives it a third that never steps."""

    def __init__(self, built):
        super().__init__()
        self.critic = keras.Sequential([*([keras.Input((4,))] if built else []), dense()])
        self.artist = keras.Sequential([*([keras.Input((4,))] if built else []), dense()])

    def compile(self, d_optimizer, g_optimizer):
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer

    def train_step(self, data):
        x, y = data
        losses = {}
        for net, optimizer, name in ((self.critic, self.d_optimizer, "d"), (self.artist, self.g_optimizer, "g")):
            with tf.GradientTape() as tape:
                losses[name] = tf.reduce_mean(tf.square(net(x, training=True) - y))
            variables = net.trainable_variables
            optimizer.apply(tape.gradient(losses[name], variables), variables)
        return losses


@pytest.mark.fault("two-models")
@pytest.mark.fault("several-optimizers")
@pytest.mark.parametrize("built", [True, False])
def test_two_optimizers_of_one_model(built):
    net = GAN(built)
    adam = keras.optimizers.Adam(0.01)
    net.compile(d_optimizer=hvs.DistributedOptimizer(adam), g_optimizer=signum())
    if built:  # as if a checkpoint had been read, by the last rank alone, or training were going on
        adam.build(net.critic.trainable_variables)
        adam._momentums[0].assign(np.full((4, 3), RANK))
    callbacks = [
        hvs.callbacks.BroadcastGlobalVariablesCallback(LAST),
        hvs.callbacks.VoteStatisticsCallback(),
        hvs.callbacks.MetricAverageCallback(),
    ]
    x, y = tasks.data(RANK)
    logs = net.fit(x, y, batch_size=tasks.BATCH, epochs=2, shuffle=False, verbose=0, callbacks=callbacks).history
    tasks.assert_replicas_identical([v.numpy() for v in [*net.weights, *adam.variables, net.g_optimizer.iterations]])
    assert {"d_optimizer_vote_agreement", "g_optimizer_vote_agreement"} <= set(logs)
    with pytest.raises(TypeError, match=r"votes by model\.d_optimizer and model\.g_optimizer"):
        hvs.save_model(net, "gan.keras")
    with pytest.raises(ValueError, match=r"trains by model\.d_optimizer and model\.g_optimizer"):
        net.fit(x, y, verbose=0, callbacks=[hvs.callbacks.LearningRateScheduleCallback(0.1, 0.5)])
    state = hvs.elastic.KerasState(net)
    adam._momentums[0].assign(np.full((4, 3), RANK))
    state.sync()
    assert not adam._momentums[0].numpy().any()  # rank 0's
    adam._momentums[0].assign(np.ones((4, 3)))
    state.restore()
    assert not adam._momentums[0].numpy().any()


@pytest.mark.fault("forgotten-optimizer")
def test_the_optimizer_that_was_forgotten_is_named():
    """One of two votes. The model's own step might see to the other, so the replicas are compared: they have parted."""
    net = GAN(True)
    net.compile(d_optimizer=signum(), g_optimizer=keras.optimizers.SGD(0.1))
    x, y = tasks.data(RANK)
    with pytest.warns(RuntimeWarning, match=r"parted in a step, since model\.g_optimizer does not vote"):
        callbacks = [hvs.callbacks.BroadcastGlobalVariablesCallback(0)]
        net.fit(x, y, batch_size=tasks.BATCH, verbose=0, callbacks=callbacks)


def test_accumulation_in_either_spelling(tmp_path):
    """Keras's keyword or the wrapper's: broadcast, saved, and kept by an elastic state."""
    folder = MPI.COMM_WORLD.bcast(str(tmp_path))
    for number, optimizer in enumerate(
        (
            signum(gradient_accumulation_steps=2),
            hvs.DistributedOptimizer(hvs.Signum(0.01, 0.5), backward_passes_per_step=2),
        )
    ):
        net = tasks.model()
        path = f"{folder}/{number}.keras"
        callbacks = [hvs.callbacks.BroadcastGlobalVariablesCallback(0), hvs.callbacks.SaveModelCallback(path)]
        tasks.fit(net, optimizer, callbacks)
        for value, simulated in zip(
            tasks.values(net), tasks.Simulation(simulation.signum(0.5), accumulate=2).train(), strict=True
        ):
            np.testing.assert_allclose(value, simulated, rtol=1e-4, atol=1e-5)
        for value, other in zip(tasks.momenta_of(hvs.load_model(path)), tasks.momenta_of(net), strict=True):
            np.testing.assert_array_equal(value, other)
        state, before = hvs.elastic.KerasState(net), tasks.momenta_of(net)
        state.sync()
        for value, other in zip(tasks.momenta_of(net), before, strict=True):
            np.testing.assert_array_equal(value, other)


def copied(how, net, folder):
    """The model with a copy of its optimizer, as Keras and Python make them: plain."""
    import copy
    import pickle

    if how == "load_model":
        net.save(f"{folder}/{RANK}.keras")
        return keras.saving.load_model(f"{folder}/{RANK}.keras")
    if how == "pickle":
        return pickle.loads(pickle.dumps(net))
    twin = tasks.model()
    twin.compile(copy.deepcopy(net.optimizer), "mse")
    return twin


@pytest.mark.fault("forgotten-optimizer")
@pytest.mark.parametrize("how", ["load_model", "deepcopy", "pickle", "on one rank"])
def test_an_optimizer_that_does_not_vote_is_an_error_on_all_ranks(how, tmp_path):
    net = tasks.model()
    net.compile(signum(), loss="mse")
    folder = MPI.COMM_WORLD.bcast(str(tmp_path))
    if how != "on one rank" or RANK == LAST:
        net = copied("load_model" if how == "on one rank" else how, net, folder)
    x, y = tasks.data(RANK)
    for callback in (hvs.callbacks.BroadcastGlobalVariablesCallback(0), hvs.callbacks.MetricAverageCallback()):
        with pytest.raises(
            TypeError, match=r"model\.optimizer is a Signum that does not vote.*hvs\.DistributedOptimizer"
        ):
            net.fit(x, y, verbose=0, callbacks=[callback])
    if how == "on one rank":
        return
    for callback in (hvs.callbacks.VoteStatisticsCallback(), hvs.callbacks.SaveModelCallback("x.keras")):
        with pytest.raises(TypeError, match=r"hvs\.DistributedOptimizer"):
            net.fit(x, y, verbose=0, callbacks=[callback])
    hvs.DistributedOptimizer(net.optimizer)
    net.fit(x, y, verbose=0, callbacks=[hvs.callbacks.BroadcastGlobalVariablesCallback(0)])
    tasks.assert_replicas_identical(tasks.values(net))


class Reducing(keras.optimizers.SGD):
    """A user's own optimizer that averages gradients, as scripts for Keras 3 have it."""

    def apply(self, grads, trainable_variables=None):
        grads = [hvd.allreduce(g, name=f"user.{i}", op=hvd.Average) for i, g in enumerate(grads)]
        return super().apply(grads, trainable_variables)


@pytest.mark.parametrize("kind", ["user's optimizer", "own tape"])
def test_what_reduces_by_itself_gives_no_alarm(kind, recwarn):
    net = tasks.model() if kind == "user's optimizer" else OwnTape()
    optimizer = Reducing(0.01) if kind == "user's optimizer" else plain()
    tasks.fit(net, optimizer, [hvs.callbacks.BroadcastGlobalVariablesCallback(0)])
    tasks.assert_replicas_identical(tasks.values(net))
    assert not [w for w in recwarn if "parted" in str(w.message)]
