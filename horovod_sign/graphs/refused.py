"""Graphs in which there can be no votes: compiled by XLA as a whole, or of TensorFlow 1."""

import tensorflow as tf


def refuse_xla() -> None:
    """Raises ValueError inside a function compiled by XLA as a whole, where Horovod's ops cannot run."""
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None:
        context = getattr(graph, "_get_control_flow_context", lambda: None)()
        while context is not None:
            if context.IsXLAContext():
                raise ValueError(
                    "Horovod's ops cannot run inside a function compiled by XLA: use jit_compile=False in model.compile"
                    " or tf.function (packing and counting of votes are compiled by themselves)"
                )
            context = context.outer_context
        graph = getattr(graph, "outer_graph", None)


def refuse_sessions() -> None:
    """Raises ValueError in graphs that TensorFlow 1 runs in sessions."""
    if tf.executing_eagerly():
        return
    with tf.init_scope():
        if not tf.executing_eagerly():
            raise ValueError(
                "votes and hvs.broadcast_variables work eagerly and in tf.function, not in graphs of TensorFlow 1: "
                "leave tf.Graph().as_default() and tf.compat.v1.disable_eager_execution() out"
            )
