"""Files in Keras's older format, .h5, as Horovod's example writes them: rank 0 saves, all load. On one rank."""

import keras
import keras_tasks as tasks
import numpy as np
import pytest
from ranks import RANK

import horovod_sign.tensorflow.keras as hvs

RANKS = (1,)  # rank 0 alone writes, and votes are not in the file


def net():
    """Several layers, whose variables have the same last names."""
    inner = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(3)], name="inner")
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), inner])


OPTIMIZERS = {
    "Signum": lambda: hvs.Signum(0.01, 0.5),
    "Signum, accumulation": lambda: hvs.Signum(0.01, 0.5, gradient_accumulation_steps=2),
    "SignSGD": lambda: hvs.SignSGD(0.01),
    "Adam": lambda: keras.optimizers.Adam(0.01),
}


@pytest.mark.fault("h5")
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_h5_keeps_weights_and_momenta(kind, tmp_path):
    """Saved after each epoch, loaded by `hvs.load_model`, trained on: as if nothing had happened."""
    model, optimizer = net(), hvs.DistributedOptimizer(OPTIMIZERS[kind]())
    model.compile(optimizer, loss=keras.losses.MeanSquaredError())
    x, y = (array[: 2 * tasks.BATCH] for array in tasks.data(RANK))  # whole steps: sums for a later vote are not saved
    how = {"batch_size": tasks.BATCH, "shuffle": False, "verbose": 0}
    model.fit(x, y, **how, callbacks=[keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.h5"))])
    loaded = hvs.load_model(tmp_path / "1.h5")
    state = zip([*model.weights, *optimizer.variables], [*loaded.weights, *loaded.optimizer.variables], strict=True)
    for value, other in state:
        np.testing.assert_array_equal(other.numpy(), value.numpy())
    for each in (model, loaded):
        each.fit(x, y, **how)
    for value, other in zip(tasks.values(model), tasks.values(loaded), strict=True):
        np.testing.assert_array_equal(other, value)


def test_slots_of_variables_of_one_name_have_names_of_their_own():
    model, optimizer = net(), hvs.Signum(0.01)
    optimizer.build(model.trainable_variables)
    assert len({v.path for v in optimizer.variables}) == len(optimizer.variables)
