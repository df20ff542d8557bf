"""The TensorFlow adapter: `import horovod_sign.tensorflow as hvs` beside `import horovod.tensorflow as hvd`.

-   tape = hvd.DistributedGradientTape(tape)
+   tape = hvs.DistributedGradientTape(tape, compression=hvs.Compression.signum())

For Keras models see `horovod_sign.tensorflow.keras`.
"""

from horovod_sign.tensorflow import advice

try:
    import horovod.tensorflow  # noqa: F401
    import tensorflow  # noqa: F401
except ImportError as error:
    raise ImportError(advice.for_tensorflow(error)) from error

from horovod_sign.tensorflow.broadcasting import broadcast_variables
from horovod_sign.tensorflow.compression import Compression
from horovod_sign.tensorflow.tape import DistributedGradientTape

__all__ = ["Compression", "DistributedGradientTape", "broadcast_variables"]
