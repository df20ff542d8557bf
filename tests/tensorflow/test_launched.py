"""A process that was started with others, and does not know of them."""

import warnings

import keras
import pytest
import tensorflow as tf

import horovod_sign.tensorflow as hvs
import horovod_sign.tensorflow.keras as hvs_keras
from horovod_sign import launched

RANKS = (1,)  # what such a process takes itself for


def tape():
    hvs.DistributedGradientTape(tf.GradientTape())


def optimizer():
    hvs_keras.DistributedOptimizer(keras.optimizers.SGD(0.1))


@pytest.mark.parametrize("wrap", [tape, optimizer])
def test_separate_trainings_are_warned_of_once(monkeypatch, wrap):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    launched._warn.cache_clear()
    with pytest.warns(RuntimeWarning, match="SLURM_STEP_NUM_TASKS says that 2 were started together"):
        wrap()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrap()
    launched._warn.cache_clear()
