"""Elastic Horovod for TensorFlow: Horovod's, with a `run` that knows all failures, and a state for Keras 3 models."""

from typing import Any

import horovod.tensorflow.elastic

from horovod_sign.adopted import adopt
from horovod_sign.tensorflow.failures import run

__all__ = ["TensorFlowKerasState", "run"]  # noqa: F822
__all__ += adopt(globals(), horovod.tensorflow.elastic, __all__)


def __getattr__(name: str) -> Any:
    if name == "TensorFlowKerasState":  # not before it is asked for: it needs Keras
        from horovod_sign.tensorflow.keras.elastic import TensorFlowKerasState

        return TensorFlowKerasState
    raise AttributeError(f"module {__name__} has no attribute {name}")
