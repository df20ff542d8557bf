"""What scripts give to Horovod's own wrapper, callbacks and `load_model`: it works, or one sentence says why not."""

import horovod.tensorflow as hvd
import keras
import keras_tasks as tasks
import numpy as np
import pytest
import tensorflow as tf
from ranks import RANK

import horovod_sign.tensorflow as hvs_tf
import horovod_sign.tensorflow.keras as hvs

RANKS = (2,)  # two that differ

NOTHING = {
    "device_dense": "/cpu:0",
    "device_sparse": "",
    "average_aggregated_gradients": True,
    "scale_local_gradients": False,
    "gradient_predivide_factor": 1.0,
    "num_groups": 0,
    "groups": None,
    "op": hvd.Average,
    "compression": hvd.Compression.none,
}


class Halved(keras.optimizers.SGD):
    """An optimizer of the user's own."""


@pytest.mark.fault("predivide")
def test_keywords_that_mean_nothing_for_a_vote_are_taken():
    """Of Horovod's example one, its defaults by name; what asks for something is refused, by its name alone."""
    net = tasks.model()
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD(0.01), backward_passes_per_step=2, **NOTHING)
    tasks.fit(net, optimizer, [hvs.callbacks.BroadcastGlobalVariablesCallback(0)])
    tasks.assert_replicas_identical(tasks.values(net))
    x = tf.Variable([1.0, -1.0])
    of_tape = {name: value for name, value in NOTHING.items() if name != "average_aggregated_gradients"}
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(x * x)
    assert hvs_tf.DistributedGradientTape(tape, **of_tape).gradient(y, x).numpy().tolist() == [1.0, -1.0]
    for name, value in [("gradient_predivide_factor", 2.0), ("num_groups", 2), ("groups", [[x]]), ("op", 99)]:
        with pytest.raises(TypeError, match=f"hvs.DistributedOptimizer has no {name}: "):
            hvs.DistributedOptimizer(hvs.SignSGD(0.01), **{**NOTHING, name: value})
        with pytest.raises(TypeError, match=f"hvs.DistributedGradientTape has no {name}: "):
            hvs_tf.DistributedGradientTape(tape, **{**of_tape, name: value})
    for name in ("Adasum", "Min", "Max", "Product"):
        with pytest.raises(TypeError, match=f"hvs.DistributedOptimizer has no op={name}: "):
            hvs.DistributedOptimizer(hvs.SignSGD(0.01), op=getattr(hvd, name))
        with pytest.raises(TypeError, match=f"hvs.DistributedGradientTape has no op={name}: "):
            hvs_tf.DistributedGradientTape(tape, op=getattr(hvd, name))


@pytest.mark.parametrize("op", ["Average", "Sum"])
@pytest.mark.parametrize("package", [hvs_tf, hvs], ids=["tensorflow", "tensorflow.keras"])
def test_a_keras_script_whose_import_alone_was_changed(package, op):
    """All of it by one name, with Horovod's keywords; it steps as the same optimizer does beside Horovod's import."""

    def script(package, callbacks, rank, size, **keywords):
        net = tasks.model()
        net.set_weights([w + rank() for w in net.get_weights()])
        optimizer = package.DistributedOptimizer(keras.optimizers.Adam(0.01 * size()), **keywords)
        callbacks = [
            callbacks.BroadcastGlobalVariablesCallback(0),
            callbacks.MetricAverageCallback(),
            callbacks.LearningRateWarmupCallback(initial_lr=0.01 * size(), warmup_epochs=1, verbose=0),
        ]
        tasks.fit(net, optimizer, callbacks)
        tasks.assert_replicas_identical(tasks.values(net))
        return [value.tobytes() for value in tasks.values(net)]

    keywords = {**NOTHING, "average_aggregated_gradients": False, "op": getattr(hvd, op)}
    by_one_name = script(package, hvs.callbacks, package.rank, package.size, **keywords)
    assert by_one_name == script(hvs, hvs.callbacks, hvd.rank, hvd.size)


@pytest.mark.quick
@pytest.mark.parametrize("wrapper", ["DistributedGradientTape", "PartialDistributedGradientTape"])
def test_a_loop_whose_import_alone_was_changed(wrapper):
    """As Horovod's example: broadcast after the first batch, metrics by allreduce."""

    def script(hvd, wrap, **keywords):
        net, optimizer = tasks.model(), keras.optimizers.SGD(0.01 * hvd.size())
        net.set_weights([w + hvd.rank() for w in net.get_weights()])
        x, y = tasks.data(hvd.rank())

        @tf.function
        def step(first):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(y - net(x, training=True)))
            tape = wrap(tape, **keywords)
            optimizer.apply_gradients(
                zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables, strict=True)
            )
            if first:
                hvs_tf.broadcast_variables(net.variables, root_rank=0)
                hvs_tf.broadcast_variables(optimizer.variables, root_rank=0)
            return loss

        losses = [float(step(number == 0)) for number in range(3)]
        mean = hvd.allreduce(tf.constant(losses[-1]), name="loss")
        assert np.isfinite(float(mean))
        tasks.assert_replicas_identical(tasks.values(net))
        return [value.tobytes() for value in tasks.values(net)]

    by_one_name = script(hvs_tf, getattr(hvs_tf, wrapper), op=hvs_tf.Sum, compression=hvs_tf.Compression.none)
    assert by_one_name == script(hvd, hvs_tf.DistributedGradientTape)


def test_wrappers_of_what_cannot_vote_are_one_sentence():
    """Horovod's would average there, and with Keras 3 reduce nothing."""
    net = tasks.model()
    with tf.GradientTape() as tape:
        tf.reduce_sum(net.trainable_variables[0].value)
    with pytest.raises(NotImplementedError, match=r"votes are on all sources"):
        hvs_tf.PartialDistributedGradientTape(tape, local_layers=net.layers)
    with pytest.raises(TypeError, match=r"GradientDescentOptimizer of TensorFlow 1: take one of keras\.optimizers"):
        hvs_tf.DistributedOptimizer(tf.compat.v1.train.GradientDescentOptimizer(0.1))
    with pytest.raises(TypeError, match=r"got '': if it is Horovod's device_dense, given by position"):
        hvs_tf.DistributedGradientTape(tape, "")
    with pytest.raises(TypeError, match=r"got '': if it is Horovod's device_dense, given by position"):
        hvs.DistributedOptimizer(keras.optimizers.SGD(), None, "")
    with pytest.raises(TypeError, match=r"no legacy_opts: Keras 3 has no legacy optimizers"):
        hvs.load_model("model.keras", legacy_opts=True)


def test_variables_broadcast_with_horovods_keyword():
    for inplace in (False, True):
        x = tf.Variable([float(RANK)])
        hvs_tf.broadcast_variables([x], root_rank=1, inplace=inplace)
        assert x.numpy() == [1.0]


@pytest.mark.fault("local-variables")
def test_local_variables_are_one_sentence():
    """Those of layers that each rank has for itself: a vote has no way to leave them out."""
    net = tasks.model()
    with tf.GradientTape() as tape:
        tf.reduce_sum(net.trainable_variables[0].value)
    tape = hvs_tf.DistributedGradientTape(tape)
    with pytest.raises(NotImplementedError, match=r"votes are on all sources.* plain tape"):
        tape.register_local_source(net.trainable_variables[0])
    with pytest.raises(NotImplementedError, match=r"votes are on all variables"):
        hvs.DistributedOptimizer(hvs.SignSGD(0.1)).register_local_var(net.trainable_variables[0])
    with pytest.raises(NotImplementedError, match=r"local_variables"):
        hvs.callbacks.BroadcastGlobalVariablesCallback(0, local_variables=[net.trainable_variables[0]])
    with pytest.raises(NotImplementedError, match=r"local_variables"):  # Horovod's order
        hvs.callbacks.BroadcastGlobalVariablesCallback(0, "", [net.trainable_variables[0]])
    hvs.callbacks.BroadcastGlobalVariablesCallback(0, local_variables=None)
    assert hvs.callbacks.BroadcastGlobalVariablesCallback(0, "", []).process_set is hvd.global_process_set


def test_load_model_with_an_optimizer_of_ones_own(tmp_path):
    """`custom_optimizers` is Horovod's."""
    net = tasks.model()
    tasks.fit(net, hvs.DistributedOptimizer(Halved(0.01)), [hvs.callbacks.BroadcastGlobalVariablesCallback(0)])
    path = tmp_path / "model.keras"
    net.save(path)
    loaded = hvs.load_model(path, custom_optimizers=[Halved])
    assert isinstance(loaded.optimizer, Halved) and loaded.optimizer.vote_statistics().step == 0
    in_horovods_order = hvs.load_model(path, [Halved], {}, compression=hvs.Compression.none, legacy_opts=False)
    assert isinstance(in_horovods_order.optimizer, Halved) and in_horovods_order.optimizer.vote_statistics().step == 0
    loaded = hvs.load_model(path, custom_objects={"Halved": Halved}, custom_optimizers=[])
    assert isinstance(loaded.optimizer, Halved)


@pytest.mark.fault("graphs")
def test_graphs_of_tensorflow_1_are_one_sentence():
    """Sessions, which Horovod's own tests use too."""
    with tf.Graph().as_default():
        x = tf.compat.v1.get_variable("x", initializer=[1.0])
        with tf.GradientTape() as tape:
            y = tf.reduce_sum(x * x)
        with pytest.raises(ValueError, match=r"not in graphs of TensorFlow 1"):
            hvs_tf.DistributedGradientTape(tape).gradient(y, [x])
        with pytest.raises(ValueError, match=r"not in graphs of TensorFlow 1"):
            hvs_tf.broadcast_variables([x], root_rank=0)
