"""`import horovod_sign.tensorflow as hvd`, and `.tensorflow.keras`, have Horovod's names: its objects, or ours."""

import importlib

import horovod.tensorflow.keras
import keras
import names
import numpy as np
import pytest

import horovod_sign.tensorflow as hvd
import horovod_sign.tensorflow.keras as hvd_keras

REPLACED = {
    "horovod.tensorflow": {
        "Compression",
        "DistributedGradientTape",
        "DistributedOptimizer",
        "PartialDistributedGradientTape",
        "broadcast_variables",
        "compression",
        "elastic",
        "keras",
    },
    "horovod.tensorflow.elastic": {"TensorFlowKerasState", "run"},
    "horovod.tensorflow.keras": {"Compression", "DistributedOptimizer", "callbacks", "elastic", "load_model"},
    "horovod.tensorflow.keras.callbacks": {
        "BestModelCheckpoint",
        "BroadcastGlobalVariablesCallback",
        "LearningRateScheduleCallback",
        "LearningRateWarmupCallback",
        "MetricAverageCallback",
    },
    "horovod.tensorflow.keras.elastic": {
        "CommitStateCallback",
        "KerasState",
        "TensorFlowKerasState",
        "UpdateBatchStateCallback",
        "UpdateEpochStateCallback",
        "run",
    },
}


def test_each_of_horovods_names_is_there():
    names.assert_all_there(REPLACED, "horovod", "horovod_sign")


def test_everything_is_listed():
    names.assert_listed(hvd, horovod.tensorflow)
    names.assert_listed(hvd_keras, horovod.tensorflow.keras)
    assert hvd.broadcast is horovod.tensorflow.broadcast  # no module of ours hides a function
    assert hvd.keras is hvd_keras


def test_the_documentation_has_them():
    names.assert_documented(REPLACED)


def test_submodules_are_imported_from_here_too():
    for name in ("mpi_ops", "functions", "sync_batch_norm"):
        module = importlib.import_module(f"horovod_sign.tensorflow.{name}")
        assert module is importlib.import_module(f"horovod.tensorflow.{name}")


def test_compressions():
    for each in (hvd, hvd_keras):
        assert each.Compression.none is horovod.tensorflow.Compression.none
        assert each.Compression.fp16 is horovod.tensorflow.Compression.fp16
    assert hvd.elastic.TensorFlowKerasState is hvd_keras.elastic.TensorFlowKerasState
    with pytest.raises(AttributeError, match="no attribute nothing"):
        hvd.elastic.nothing  # noqa: B018


def test_the_best_models_file_is_named_later(tmp_path):
    """Horovod's has no argument for it; Keras 3 wants one at once."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.ones((1, 1))
    for weights_only, ending in ((False, ".keras"), (True, ".weights.h5")):
        callback = hvd_keras.callbacks.BestModelCheckpoint(monitor="loss", save_weights_only=weights_only)
        with pytest.raises(ValueError, match=r"set callback\.filepath"):
            model.fit(x, x, callbacks=[callback], verbose=0)
        callback.filepath = str(tmp_path / f"best{ending}")
        model.fit(x, x, callbacks=[callback], verbose=0)
        assert (tmp_path / f"best{ending}").exists()
