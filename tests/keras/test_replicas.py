"""What no vote shows: ranks that step with other numbers, or from other weights. It is compared, and said once."""

import re
import warnings

import keras
import keras_tasks as tasks
import numpy as np
import pytest
import tensorflow as tf
from ranks import LAST, RANK, SIZE

import horovod_sign.tensorflow as hvs_tf
import horovod_sign.tensorflow.keras as hvs

RANKS = (3,)  # the rank that differs is named, and so are two that are alike

pytestmark = pytest.mark.fault("replicas")

EPOCHS = 4


def odd(change):
    """A callback that changes the model on the last rank, at the end of the first epoch."""

    def on_epoch_end(epoch, logs):
        if epoch == 0 and RANK == LAST:
            change(net)

    net = tasks.model()
    return net, keras.callbacks.LambdaCallback(on_epoch_end=on_epoch_end)


def rate(net):
    net.optimizer.learning_rate = 0.5


def weights(net):
    net.trainable_variables[1].assign_add([1.0, 0.0, 0.0])


DIFFERENCES = {
    "rate": (
        rate,
        f"learning_rate of optimizer is 0.00999.* on ranks 0, 1 and 0.5 on rank {LAST}.*MetricAverageCallback",
    ),
    "weights": (weights, r"checksum of bias \(3,\) is .* on ranks 0, 1 and .* on rank 2.*parted"),
    "nothing": (lambda net: None, None),
}
CALLBACKS = {
    "usual": lambda: [hvs.callbacks.BroadcastGlobalVariablesCallback(0)],
    "by batches": lambda: [hvs.callbacks.CheckReplicasCallback(every=2)],
}


@pytest.mark.parametrize("callbacks", CALLBACKS)
@pytest.mark.parametrize("what", DIFFERENCES)
def test_ranks_that_differ_are_told_once(what, callbacks):
    change, words = DIFFERENCES[what]
    net, callback = odd(change)
    inner = keras.optimizers.LossScaleOptimizer(hvs.Signum(0.01, 0.5), initial_scale=2.0 ** (RANK + 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tasks.fit(net, hvs.DistributedOptimizer(inner), [*CALLBACKS[callbacks](), callback], EPOCHS)
    said = [str(w.message) for w in caught if "ranks differ" in str(w.message)]
    kinds = {"rate": "learning_rate of", "weights": "checksum of", "nothing": "nothing"}
    assert sum(kinds[what] in text for text in said) == (words is not None)
    if words is not None:
        assert re.search(words, said[0])


def test_options_that_differ_from_the_start():
    """The momentum of each worker, for example, which is no variable of the optimizer."""
    net = tasks.model()
    with pytest.warns(RuntimeWarning, match=rf"momentum of optimizer is 0.5 on ranks 0, 1 and 0.9 on rank {LAST}"):
        tasks.fit(
            net,
            hvs.DistributedOptimizer(keras.optimizers.SGD(0.01, 0.9 if RANK == LAST else 0.5)),
            [hvs.callbacks.BroadcastGlobalVariablesCallback(0)],
        )
    assert SIZE == 3 and np.isfinite(tasks.values(net)[0]).all()


class Scale(keras.layers.Layer):
    """Its weight has no name, so that Keras numbers it, among all such of the process."""

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones")

    def call(self, x):
        return x * self.scale


@pytest.mark.parametrize("way", ["fit", "tape"])
def test_numbers_that_keras_gives_to_variables_are_each_ranks_own(way):
    """One that a rank made besides, for example for a metric of its own, is no difference between the models."""
    if RANK == LAST:
        keras.Variable(1.0)
    net = keras.Sequential([keras.Input((4,)), Scale(), keras.layers.Dense(3, kernel_initializer="ones"), Scale()])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        if way == "fit":
            checks = [hvs.callbacks.BroadcastGlobalVariablesCallback(0), hvs.callbacks.CheckReplicasCallback(every=1)]
            tasks.fit(net, hvs.DistributedOptimizer(hvs.SignSGD(0.01)), checks)
        else:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(net(np.ones((2, 4))))
            hvs_tf.DistributedGradientTape(tape).gradient(loss, net.trainable_variables)
    tasks.assert_replicas_identical(tasks.values(net))


def test_a_variable_of_another_name_is_a_difference():
    bias = keras.Variable([1.0], name="bias" if RANK != LAST else "variable_1")
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD(0.01))
    with pytest.raises(ValueError, match=r"variable 0 is .* on rank"):
        optimizer.apply([tf.constant([1.0])], [bias])
