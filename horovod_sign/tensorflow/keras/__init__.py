"""The Keras 3 adapter: all that `horovod.tensorflow.keras` has, with votes in place of its sums.

-   import horovod.tensorflow.keras as hvd
+   import horovod_sign.tensorflow.keras as hvd

Or as `hvs`, beside `import horovod.tensorflow as hvd`:

-   optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1))
+   optimizer = hvs.DistributedOptimizer(hvs.Signum(0.001))
    model.compile(optimizer, ...)

On a GPU also give `model.compile` jit_compile=False: Horovod's ops cannot run inside XLA.
"""

from horovod_sign.tensorflow import advice  # says what is missing, if TensorFlow or Horovod is

try:
    import keras
except ImportError as error:
    raise ImportError(advice.for_keras(error)) from error

if (_wrong := advice.for_backend(keras.__version__, keras.backend.backend())) is not None:
    raise ImportError(_wrong)

import horovod.tensorflow.keras

from horovod_sign.adopted import adopt
from horovod_sign.rules import Rule
from horovod_sign.tensorflow.broadcasting import broadcast_variables
from horovod_sign.tensorflow.compression import Compression
from horovod_sign.tensorflow.keras import callbacks, elastic
from horovod_sign.tensorflow.keras.distributed import DistributedOptimizer
from horovod_sign.tensorflow.keras.optimizers import Lion, SignOptimizer, SignSGD, Signum
from horovod_sign.tensorflow.keras.saving import load_model, save_model
from horovod_sign.voting.nodes import node_process_sets

__all__ = [
    "Compression",
    "DistributedOptimizer",
    "Lion",
    "Rule",
    "SignOptimizer",
    "SignSGD",
    "Signum",
    "broadcast_variables",
    "callbacks",
    "elastic",
    "load_model",
    "node_process_sets",
    "save_model",
]
__all__ += adopt(globals(), horovod.tensorflow.keras, __all__)
