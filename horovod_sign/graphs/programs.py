"""Functions that XLA compiles, as many as the process can afford: TensorFlow frees no compiled program, ever.

A program is for tensors of certain shapes, and takes megabytes. A process that trains model after model, of
shapes that it has not had yet, would grow without end. So there are only so many; after that, what is new runs as plain
TensorFlow operations in the caller's graph, bit for bit the same, and goes when the graph goes.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context

# Of small tensors, where the difference in time is small beside that of a Horovod op, and of large ones.
SMALL = 2**18
limits = {"small": 40, "large": 80}
_compiled = {"small": 0, "large": 0}


class Compiled:
    """`function` compiled by XLA, wherever it is called from: eagerly or inside the caller's graph.

    Args:
        function: of tensors, lists of tensors and None, of static shapes; plain array code.
    """

    def __init__(self, function: Callable) -> None:
        self._plain, self._function = function, tf.function(function, jit_compile=True, autograph=False)
        self._signatures: set[tuple] = set()

    def __call__(self, *args: Any) -> Any:
        with _unobserved():
            return (self._function if self._affordable(args) else self._plain)(*args)

    def _affordable(self, args: Any) -> bool:
        tensors = [t for arg in args for t in (arg if isinstance(arg, (list, tuple)) else [arg]) if t is not None]
        signature = tuple((t.dtype, tuple(t.shape)) for t in tensors)
        if signature not in self._signatures:
            size = "large" if sum(math.prod(shape) for _, shape in signature) >= SMALL else "small"
            if _compiled[size] >= limits[size]:
                return False
            _compiled[size] += 1
            self._signatures.add(signature)
        return True


@contextmanager
def _unobserved() -> Iterator[None]:
    """Inside, what observes each operation (`tf.debugging.enable_check_numerics`) does not see ours.

    XLA cannot compile what it puts into a graph; and a gradient that is NaN is found where it comes from.
    """
    thread = context.context()
    before, thread.invoking_op_callbacks = thread.invoking_op_callbacks, True
    try:
        yield
    finally:
        thread.invoking_op_callbacks = before
