"""Variables from one rank to all, Keras 3 variables included (which Horovod's own function refuses)."""

import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_sign.tensorflow.election import check_agreement, require_horovod


def broadcast_variables(variables, root_rank: int = 0, process_set=hvd.global_process_set):
    """Gives all ranks the values that `variables` have on `root_rank`, in one message. Executes eagerly.

    Args:
        variables: tf.Variable or Keras variables of any numeric dtype, the same on all ranks.
        root_rank: a rank of the whole job, also within a process set, as in Horovod.

    Raises:
        ValueError: Horovod is not initialized, or the ranks' variables differ. On all ranks.
    """
    require_horovod()
    variables = [getattr(v, "value", v) if not isinstance(v, tf.Variable) else v for v in variables]
    if process_set.size() == 1 or not variables:
        return
    layout = "\n".join([f"{len(variables)} variables"] + [f"{v.dtype.name} {tuple(v.shape)}" for v in variables])
    check_agreement("broadcast_variables", layout, None, process_set)
    parts = [_as_bytes(v) for v in variables]
    received = hvd.broadcast(tf.concat(parts, 0), root_rank, "horovod_sign.tf.broadcast", process_set=process_set)
    for v, part in zip(variables, tf.split(received, [part.shape[0] for part in parts]), strict=True):
        v.assign(_from_bytes(part, v))


def _as_bytes(variable) -> tf.Tensor:
    value = variable.read_value()
    value = tf.cast(value, tf.uint8) if value.dtype == tf.bool else value
    return tf.reshape(tf.bitcast(value, tf.uint8), [-1])


def _from_bytes(part, variable) -> tf.Tensor:
    if variable.dtype == tf.bool:
        return tf.reshape(tf.cast(part, tf.bool), variable.shape)
    shape = list(variable.shape) if variable.dtype.size == 1 else [*variable.shape, variable.dtype.size]
    return tf.bitcast(tf.reshape(part, shape), variable.dtype)
