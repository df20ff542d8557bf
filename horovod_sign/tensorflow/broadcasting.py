"""Variables from one rank to all, Keras 3 variables included (which Horovod's own function refuses)."""

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from horovod_sign.graphs.refused import refuse_sessions, refuse_xla
from horovod_sign.graphs.variables import variable
from horovod_sign.options import require_horovod
from horovod_sign.tensorflow.repeated import at_each_run
from horovod_sign.voting.records import disagreement, encode_record

# Bytes per message. MPI counts in 32-bit integers, so Horovod aborts the job above 2 GiB; and pieces bound the copies.
PIECE = 2**28

_NAME = "horovod_sign.tf.broadcast"


@tf.autograph.experimental.do_not_convert
def broadcast_variables(
    variables: Iterable[Any],
    root_rank: int = 0,
    process_set: hvd.ProcessSet = hvd.global_process_set,
    inplace: bool = False,
) -> Any:
    """Gives all ranks the values that `variables` have on `root_rank`. Eagerly, or as a part of a `tf.function`.

    Args:
        variables: tf.Variable or Keras variables of any numeric dtype, the same on all ranks.
        root_rank: a rank of the whole job, also within a process set, as in Horovod.
        inplace: Horovod's. Has no effect.

    Raises:
        ValueError: Horovod is not initialised, or the ranks' variables differ (in a `tf.function`
            tf.errors.InvalidArgumentError, when it runs). On all ranks.
    """
    require_horovod(hvd)
    refuse_sessions()
    refuse_xla()
    variables = [getattr(v, "value", v) if not isinstance(v, tf.Variable) else v for v in variables]
    if not variables:
        warnings.warn(
            "broadcast_variables was given no variables: a model that is not built yet has none; call it after the "
            "first batch, or build the model before",
            stacklevel=2,
        )
    if process_set.size() == 1:
        return
    _in_turn(lambda: _broadcast(variables, root_rank, process_set))


def parts_of(tensor: tf.Tensor, copies: int = 1) -> Iterator[tf.Tensor]:
    """A tensor in flat parts, so many copies of which have PIECE bytes at most (or are of one element)."""
    flat = tf.reshape(tensor, [-1])
    for start, stop in _spans(tensor.shape.num_elements(), PIECE // (_bytes(tensor.dtype) * copies)):
        yield _part(flat, start, stop)


def _spans(count: int, most: int) -> list[tuple[int, int]]:
    """The parts [start, stop) of `count` elements, each of so many at most (or of one)."""
    most = max(most, 1)
    return [(start, min(start + most, count)) for start in range(0, count, most)]


def _part(flat: tf.Tensor, start: int, stop: int) -> tf.Tensor:
    # Beyond 2^31 too, which Python's slices, in 32 bits, do not reach.
    return tf.slice(flat, tf.constant([start], tf.int64), tf.constant([stop - start], tf.int64))


def _broadcast(variables: Sequence[Any], root_rank: int, process_set: hvd.ProcessSet) -> list:
    """Broadcasts in as many messages as it takes. What to wait for."""
    with tf.control_dependencies(_agreed(variables, process_set)):
        arrived: list[list[tf.Tensor]] = [[] for _ in variables]
        assigned = []
        for number, message in enumerate(_messages(variables)):
            parts = tf.concat([_as_bytes(variables[i], start, stop) for i, start, stop in message], 0)
            name = f"{_NAME}.{number}"
            received = hvd.broadcast(parts, root_rank, name, ignore_name_scope=True, process_set=process_set)
            lengths = [(stop - start) * _bytes(variables[i].dtype) for i, start, stop in message]
            for (i, _, stop), part in zip(message, tf.split(received, lengths), strict=True):
                arrived[i].append(_from_bytes(part, variables[i].dtype))
                if stop == _count(variables[i]):
                    value = tf.concat(arrived[i], 0)
                    assigned.append(variables[i].assign(tf.reshape(value, _shape(variables[i]))))
                    arrived[i] = []
    return assigned


def _messages(variables: Sequence[Any]) -> list[list[tuple[int, int, int]]]:
    """What goes together: lists of (variable, start, stop), each of at most PIECE bytes (or one element)."""
    messages: list[list[tuple[int, int, int]]] = []
    room = 0
    for i, v in enumerate(variables):
        for start, stop in _spans(_count(v), PIECE // _bytes(v.dtype)):
            size = (stop - start) * _bytes(v.dtype)
            if not messages or size > room:
                messages.append([])
                room = PIECE
            messages[-1].append((i, start, stop))
            room -= size
    return messages


def _agreed(variables: Sequence[Any], process_set: hvd.ProcessSet) -> list:
    """Raises an error on all ranks unless they bring the same; in a graph, what does so when it runs.

    In a graph it cannot be asked while tracing: ranks need not trace again at the same time.
    """
    layout = "\n".join([f"{len(variables)} variables"] + [f"{v.dtype.name} {tuple(v.shape)}" for v in variables])
    record = at_each_run(encode_record(layout).copy())
    records = hvd.allgather(record[None], name=f"{_NAME}.agree", ignore_name_scope=True, process_set=process_set)
    if not tf.executing_eagerly():
        return [tf.numpy_function(_raise_unless_alike, [records], tf.bool)]
    _raise_unless_alike(np.asarray(records))
    return []


def _raise_unless_alike(records: np.ndarray) -> np.bool_:
    found = disagreement("broadcast_variables", records)
    if found is not None:
        raise found
    return np.True_


def _as_bytes(variable: Any, start: int, stop: int) -> tf.Tensor:
    part = _part(tf.reshape(variable.read_value(), [-1]), start, stop)
    part = tf.cast(part, tf.uint8) if part.dtype == tf.bool else part
    return tf.reshape(tf.bitcast(part, tf.uint8), [-1])


def _from_bytes(part: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    if dtype == tf.bool:
        return tf.cast(part, tf.bool)
    return tf.bitcast(part if dtype.size == 1 else tf.reshape(part, [-1, dtype.size]), dtype)


def _shape(variable: Any) -> tf.Tensor:
    return tf.constant(variable.shape.as_list(), tf.int64)


def _count(variable: Any) -> int:
    return variable.shape.num_elements()


def _bytes(dtype: tf.DType) -> int:
    return 1 if dtype == tf.bool else dtype.size


def _in_turn(act: Callable[[], list]) -> Any:
    """`act()`; in graphs only after what went before, also in other functions, since all have the same names.

    Each reads and writes one variable before and after, and TensorFlow keeps that in the order of the program.
    """
    if tf.executing_eagerly():
        return act()
    with tf.control_dependencies([_turns().assign_add(1)]):
        done = act()
    with tf.control_dependencies(done):
        return _turns().assign_add(1)


@functools.cache
def _turns() -> tf.Variable:
    return variable(0, tf.int64)
