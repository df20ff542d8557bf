"""Arguments that both wrappers take, checked once."""

import horovod.tensorflow as hvd

from horovod_sign.keywords import check_keywords, wrong_compression
from horovod_sign.launched import warn_if_alone
from horovod_sign.tensorflow.compression import SignCompressor
from horovod_sign.tensorflow.election import refuse_sessions, require_horovod
from horovod_sign.voting.protocols import TRANSPORTS

# Where Horovod reduces; whether it sums or averages the passes of a step, which have the same sign; what it does with
# local gradients, of which a vote has none; and how optimizers of TensorFlow 1 assign.
_WITHOUT_EFFECT = frozenset(
    {"device_dense", "device_sparse", "average_aggregated_gradients", "scale_local_gradients", "use_locking"}
)


def check_arguments(wrapper: str, compression, passes, process_set, transport, unsupported):
    """Raises TypeError or ValueError, in one sentence, for what a wrapper of `hvs` cannot do."""
    check_keywords(wrapper, unsupported, hvd, _WITHOUT_EFFECT)
    require_horovod()
    refuse_sessions()
    warn_if_alone(hvd.size())
    if compression is not None and not isinstance(compression, SignCompressor):
        raise wrong_compression(compression)
    if process_set.process_set_id is None:
        raise ValueError(
            "the process set is not registered: call hvd.add_process_set, or give hvd.init() process_sets="
        )
    if process_set.included() is False:
        raise ValueError(f"rank {hvd.rank()} is not in the process set {process_set.ranks}: leave it out of the vote")
    if transport not in TRANSPORTS:
        raise ValueError(f"transport must be one of {', '.join(map(repr, TRANSPORTS))}, got {transport!r}")
    if not isinstance(passes, int) or passes < 1:
        raise ValueError(f"backward_passes_per_step must be an integer of at least 1, got {passes!r}")
