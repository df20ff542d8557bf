"""What of a vote is on the host: all of it, but packing gradients and unpacking what was decided.

How long a message is, and which branch is taken, hangs on bits. Left to itself TensorFlow computes all of that on the
GPU, if there is one, and copies each number that the host goes by. So a ballot comes to the host in one copy, and what
was decided goes back in one. Without a GPU there is nothing to say, which would take its time in each trace.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import tensorflow as tf

from horovod_sign.voting.messages import Planes

_Function = TypeVar("_Function", bound=Callable[..., Any])


def host() -> Any:
    """A context: what is inside is computed on the host."""
    return tf.device("CPU:0") if has_devices() else contextlib.nullcontext()


def anywhere() -> Any:
    """A context, in another one: what is inside is computed where TensorFlow likes: on a GPU if there is one."""
    return tf.device(None) if has_devices() else contextlib.nullcontext()


def on_host(function: _Function) -> _Function:
    """A function that is computed on the host."""

    @functools.wraps(function)
    def there(*args: Any, **options: Any) -> Any:
        with host():
            return function(*args, **options)

    return there  # type: ignore[return-value]


def to_host(planes: Planes) -> Planes:
    """Planes that were packed, in one copy."""
    if planes.nonzero is None or not has_devices():
        return planes
    both = tf.concat(planes, axis=0)
    with host():
        return _halves(both)


def from_host(planes: Planes) -> Planes:
    """Planes that were decided, where they are unpacked, in one copy."""
    if planes.nonzero is None or not has_devices():
        return planes
    with host():
        both = tf.concat(planes, axis=0)
    return _halves(both)


def _halves(both: tf.Tensor) -> Planes:
    middle = both.shape[0] // 2
    return Planes(both[:middle], both[middle:])  # there is no tf.split of bytes on GPUs


@functools.cache
def has_devices() -> bool:
    """Whether gradients may be elsewhere than on the host."""
    return len(tf.config.list_logical_devices()) > len(tf.config.list_logical_devices("CPU"))
