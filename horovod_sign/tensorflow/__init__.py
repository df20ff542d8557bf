"""The TensorFlow adapter: all that `horovod.tensorflow` has, with votes in place of its sums.

-   import horovod.tensorflow as hvd
+   import horovod_sign.tensorflow as hvd

Or beside it, as `hvs`:

-   tape = hvd.DistributedGradientTape(tape)
+   tape = hvs.DistributedGradientTape(tape, compression=hvs.Compression.signum())

For Keras models see `horovod_sign.tensorflow.keras`.
"""

from horovod_sign.supported import refuse_older
from horovod_sign.tensorflow import advice

if (_crash := advice.for_a_crash()) is not None:
    raise ImportError(_crash)
try:
    import horovod.tensorflow
    import tensorflow
except ImportError as error:
    raise ImportError(advice.for_tensorflow(error)) from error
else:
    refuse_older("horovod_sign.tensorflow", tensorflow=tensorflow.__version__, horovod=horovod.__version__)

from horovod_sign.adopted import adopt
from horovod_sign.rules import Rule
from horovod_sign.tensorflow import elastic
from horovod_sign.tensorflow.broadcasting import broadcast_variables
from horovod_sign.tensorflow.compression import Compression
from horovod_sign.tensorflow.tape import DistributedGradientTape
from horovod_sign.tensorflow.wrappers import DistributedOptimizer, PartialDistributedGradientTape
from horovod_sign.voting.nodes import node_process_sets

__all__ = [
    "Compression",
    "DistributedGradientTape",
    "DistributedOptimizer",
    "PartialDistributedGradientTape",
    "Rule",
    "broadcast_variables",
    "elastic",
    "node_process_sets",
]
__all__ += adopt(globals(), horovod.tensorflow, __all__)
