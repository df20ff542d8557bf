"""What a rank that is gone does to the others' ops, and elastic Horovod's `run`, which must know of it."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import horovod.tensorflow.elastic
import tensorflow as tf
from horovod.common.exceptions import HorovodInternalError


def run(func: Callable[..., Any]) -> Callable[..., Any]:
    """Horovod's `elastic.run`, which by itself takes a failed alltoall for the end of the job.

    Args:
        func: the training, a function of a state and whatever else. A step that a `tf.function` of yours traces must be
            made inside of it: what has been traced is for the ranks of that time.
    """

    @functools.wraps(func)
    def training(state: Any, *args: Any, **kwargs: Any) -> Any:
        with horovods_failures():
            return func(state, *args, **kwargs)

    return horovod.tensorflow.elastic.run(training)


@contextmanager
def horovods_failures() -> Iterator[None]:
    """Inside, a Horovod op that fails because a rank is gone raises what elastic Horovod expects."""
    try:
        yield
    except (tf.errors.UnknownError, tf.errors.AbortedError) as error:
        if "Horovod" in str(error):
            raise HorovodInternalError(str(error)) from error
        raise
