"""A rank that goes over to other variables says farewell in the vote that it leaves.

Layers are frozen and the model is compiled anew: from then on this rank votes on other variables, after all ranks have
agreed on them. Should other ranks not have done the same, they wait for this rank in the former vote, and this one
waits for them to agree. So it takes part in the first request of the former vote once more, with a message that no
vote has. Where all ranks do so, all have left; where some do, all learn of it, and all raise an error.
"""

import functools
from typing import Any, NamedTuple

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from horovod_sign.algebra import counts_bits
from horovod_sign.graphs.places import host
from horovod_sign.tensorflow.repeated import at_each_run
from horovod_sign.voting.hierarchy import JOINED

# In place of a message's number of planes (1 or 2), and of what counts a voter among the counts.
_NO_PLANES, _NO_VOTER = 255, 2**32

_LEFT = (
    "the trainable variables have changed on some ranks since the last vote and not on others (layers frozen or "
    "unfrozen, a model compiled anew): change them on all ranks alike, before the same step"
)


class Former(NamedTuple):
    """The first requests of an election's votes.

    Attributes:
        name: what the names of its Horovod ops begin with.
        counted: whether they are allreduces of counts; else alltoalls of exchanges.
        eager: whether the votes are executed eagerly, one bucket after the other; else all begin, whatever is heard in
            any of them.
        scaled: whether the ranks first tell each other who overflowed.
        attended: whether they tell each other who is there, before anything is averaged or sent.
        widths: for each bucket the bytes of the ballot's sign plane.
    """

    name: str
    counted: bool
    eager: bool
    scaled: bool
    attended: bool
    widths: list[int]


def say(former: Former, process_set: Any, size: int) -> None:
    """Leaves a vote. A collective of all ranks, whether they leave or vote. Executes eagerly.

    Args:
        former: what is left.
        process_set, size: Horovod's, of the ranks that vote, and how many they are.

    Raises:
        ValueError: not all ranks leave.
    """

    options = {"ignore_name_scope": True, "process_set": process_set}

    def leave(number: int) -> tf.Tensor:
        name, all_left = f"{former.name}.{number}.0", []
        if former.scaled and number == 0:
            heard = hvd.allreduce(tf.constant(0), op=hvd.Sum, name=f"{former.name}.finite", **options)
            all_left.append(heard >= 0)
        if former.attended:
            all_left.append(_attendance(former.name, left=True)[1] == size)
        elif former.counted:
            words = np.zeros(former.widths[number] * counts_bits(size) // 8 + 1, np.int64)
            words[-1] = _NO_VOTER
            summed = hvd.allreduce(tf.constant(words), op=hvd.Sum, name=name, **options)
            all_left.append(summed[-1] % _NO_VOTER == 0)
        else:
            farewells = tf.fill([size], np.uint8(_NO_PLANES))
            received, lengths = hvd.alltoall(farewells, tf.ones([size], tf.int32), name=name, **options)
            all_left.append(tf.reduce_all(_heads(received, lengths) == _NO_PLANES))
        return tf.reduce_all(tf.stack(all_left))

    # Horovod does not know the names of ops that are executed eagerly: so in a graph exactly if the others are in one.
    if former.eager:
        alike = [leave(0)]
    else:
        numbers = range(1 if former.attended else len(former.widths))
        # A function for each: TensorFlow would take ops with equal inputs for one.
        leave_in_graph = [tf.function(functools.partial(leave, n), autograph=False) for n in numbers]
        alike = [leave_one() for leave_one in leave_in_graph]
    if not all(alike):
        raise ValueError(_LEFT)


def all_there(name: str, size: int, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """Tensors, once it is known that all ranks take part in a vote; fails if one has joined or left.

    Ranks in `hvd.join()` would be waited for ever by process sets. So nothing else of the vote may begin before.
    """
    with host():
        present, left = tf.unstack(_attendance(name, left=False))
        if tf.executing_eagerly() and present < size:
            raise RuntimeError(JOINED)
        checks = [tf.debugging.Assert(present == size, [JOINED]), tf.debugging.Assert(left == 0, [_LEFT])]
    with tf.control_dependencies([check for check in checks if check is not None]):
        return [tf.identity(tensor) for tensor in tensors]


def _attendance(name: str, left: bool) -> tf.Tensor:
    """How many ranks are there, and how many of them say farewell."""
    mine = at_each_run(tf.constant([1, int(left)]))
    return tf.ensure_shape(hvd.allreduce(mine, op=hvd.Sum, name=f"{name}.present", ignore_name_scope=True), [2])


def left_in_messages(received: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Whether a rank has left, by the messages of an alltoall. `lengths`: those of the messages, in order."""
    return tf.reduce_any(_heads(received, lengths) == _NO_PLANES)


def left_in_counts(summed: tf.Tensor) -> tf.Tensor:
    """Whether a rank has left, by the sum of an allreduce."""
    return summed[-1] >= _NO_VOTER


def unless_left(results: list, left: list) -> list:
    """What has arrived for votes that run beside each other; fails if a rank has left, but not before all is there.

    A rank that ended its step with a vote that it has not begun would leave the others waiting in it. (Where no rank
    has left, no vote waits for another: of a `tf.cond` in a graph only the branch that is taken waits for its inputs.)

    Args:
        results: a tensor of each vote.
        left: for each whether a rank has left, a scalar bool tensor.
    """
    if len(results) < 2:
        return [_unless(gone, result) for result, gone in zip(results, left, strict=True)]
    return [
        tf.cond(gone, lambda r=r: _unless(tf.reduce_any(left), r), lambda r=r: r)
        for r, gone in zip(results, left, strict=True)
    ]


def _heads(received: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    return tf.gather(received, tf.cumsum(lengths, exclusive=True))


def _unless(left: tf.Tensor, tensor: tf.Tensor) -> tf.Tensor:
    with tf.control_dependencies([tf.debugging.Assert(~left, [_LEFT])]):
        return tf.identity(tensor)
