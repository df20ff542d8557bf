"""Arguments that both wrappers take, checked once."""

import horovod.tensorflow as hvd

from horovod_sign.launched import warn_if_alone
from horovod_sign.tensorflow.compression import SignCompressor
from horovod_sign.tensorflow.election import require_horovod
from horovod_sign.voting.protocols import TRANSPORTS


def check_arguments(wrapper: str, compression, passes, process_set, transport, unsupported):
    """Raises TypeError or ValueError, in one sentence, for what a wrapper of `hvs` cannot do."""
    if unsupported:
        raise TypeError(
            f"hvs.{wrapper} has no {', '.join(unsupported)}: a vote is neither a sum nor an average and makes its own "
            "groups; leave them out"
        )
    require_horovod()
    warn_if_alone(hvd.size())
    if compression is not None and not isinstance(compression, SignCompressor):
        raise TypeError(
            f"compression must be hvs.Compression.signsgd() or hvs.Compression.signum(), got {compression!r}: there is "
            "no way not to vote"
        )
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
