"""Arguments that both wrappers take, checked once."""

from typing import Any

import horovod.tensorflow as hvd

from horovod_sign.graphs.refused import refuse_sessions
from horovod_sign.keywords import check_keywords, wrong_compression
from horovod_sign.options import check_process_set, reachable
from horovod_sign.tensorflow.compression import SignCompressor

# Where Horovod reduces; whether it sums or averages the passes of a step, which have the same sign; what it does with
# local gradients, of which a vote has none; and how optimizers of TensorFlow 1 assign.
_WITHOUT_EFFECT = frozenset(
    {"device_dense", "device_sparse", "average_aggregated_gradients", "scale_local_gradients", "use_locking"}
)


def check_arguments(wrapper: str, compression: Any, process_set: Any, unsupported: Any) -> None:
    """Raises TypeError or ValueError, in one sentence, for what a wrapper of `hvs` cannot do."""
    check_keywords(wrapper, unsupported, hvd, _WITHOUT_EFFECT)
    reachable(hvd, process_set)
    check_process_set(hvd, process_set)
    refuse_sessions()
    if compression is not None and not isinstance(compression, SignCompressor):
        raise wrong_compression(compression)
