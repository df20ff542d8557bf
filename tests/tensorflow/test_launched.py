"""A process that was started with others, and does not know of them."""

import keras
import pytest
import tensorflow as tf
from separate_trainings import assert_warned_of_once

import horovod_sign.tensorflow as hvs
import horovod_sign.tensorflow.keras as hvs_keras

RANKS = (1,)  # what such a process takes itself for


def tape():
    hvs.DistributedGradientTape(tf.GradientTape())


def optimizer():
    hvs_keras.DistributedOptimizer(keras.optimizers.SGD(0.1))


@pytest.mark.fault("separate")
@pytest.mark.parametrize("wrap", [tape, optimizer])
def test_separate_trainings_are_warned_of_once(monkeypatch, wrap):
    assert_warned_of_once(monkeypatch, wrap)
