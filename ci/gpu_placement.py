"""What of a training step's graph TensorFlow would have on a GPU, and which tensors cross to the host and back.

    mpirun -np 2 build/gpu/tensorflow/bin/python ci/gpu_placement.py

Needs a TensorFlow for CUDA, which knows what kernels it has for GPUs and which of their arguments are in the host's
memory, and no GPU. An operation that is given no device counts as on the GPU if there is a kernel for it; a branch's
inputs (`tf.cond`) stay where they are until it is taken. docs/gpu.md has the table.
"""

import functools

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework import kernels, op_def_registry

import horovod_sign.tensorflow as hvs
import horovod_sign.tensorflow.keras as hvk
from horovod_sign.graphs import places

_NEITHER = ("Const", "Placeholder", "NoOp", "ReadVariableOp")  # known on both sides, or where their variable is


def on_gpu(node):
    """The kernel that a GPU would run; None: it is the host's."""
    if "CPU" in node.device:
        return None
    fitting = [kernel for kernel in _kernels(node.op) if all(_fits(node, each) for each in kernel.constraint)]
    there = [kernel for device in ("GPU", "DEFAULT") for kernel in fitting if kernel.device_type == device]
    return there[0] if there else None


@functools.cache
def _kernels(op):
    return list(kernels.get_registered_kernels_for_op(op).kernel)


def _fits(node, constraint) -> bool:
    attribute = node.attr[constraint.name]
    types = [attribute.type] if attribute.type else attribute.list.type
    return all(each in constraint.allowed_values.list.type for each in types)


def _names(arguments, node) -> list[str]:
    """The name of each input or output of a node, by the list of them in its definition."""
    names = []
    for a in arguments:
        many = len(node.attr[a.type_list_attr].list.type) if a.type_list_attr else 1
        names += [a.name] * (node.attr[a.number_attr].i if a.number_attr else many)
    return names


def crossing(graph_def) -> dict[str, set[str]]:
    """The tensors that cross, by direction."""
    nodes, crossed = {node.name: node for node in graph_def.node}, {"to the host": set(), "to the GPU": set()}

    def is_host(node, argument: str) -> bool:
        kernel = on_gpu(node)
        return kernel is None or argument in kernel.host_memory_arg

    for node in graph_def.node:
        names = _names(op_def_registry.get(node.op).input_arg, node)
        inputs = [each for each in node.input if not each.startswith("^")]
        is_branch = node.op in ("If", "StatelessIf", "While")
        for name, tensor in list(zip(names, inputs, strict=True))[: 1 if is_branch else None]:
            source, _, number = tensor.partition(":")
            if nodes[source].op in _NEITHER:
                continue
            outputs = _names(op_def_registry.get(nodes[source].op).output_arg, nodes[source])
            there, here = is_host(nodes[source], outputs[int(number or 0)]), is_branch or is_host(node, name)
            if there != here:
                crossed["to the host" if here else "to the GPU"].add(tensor)
    return crossed


def of_tape(compression, transport, megabytes=None):
    """A step with a tape, traced and run once."""
    variables = [tf.Variable(np.ones((40, 30), np.float32)), tf.Variable(np.zeros(30, np.float32))]
    options = {"compression": compression, "transport": transport, "bucket_cap_mb": megabytes}

    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((x @ variables[0] + variables[1]) ** 2)
        for v, vote in zip(
            variables, hvs.DistributedGradientTape(tape, **options).gradient(loss, variables), strict=True
        ):
            v.assign_sub(0.01 * vote)

    return step


def of_keras(optimizer):
    """A step with a Keras optimizer."""
    dense = keras.layers.Dense(30)
    dense.build((8, 40))
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    optimizer = hvk.DistributedOptimizer(optimizer, transport="exchange")

    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(dense(x) ** 2)
            loss = optimizer.scale_loss(loss) if scaled else loss
        variables = dense.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)

    return step


def of_horovod():
    """A step with Horovod's own allreduce."""
    w = tf.Variable(np.ones((40, 30), np.float32))

    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((x @ w) ** 2)
        w.assign_sub(hvd.allreduce(tape.gradient(loss, w), op=hvd.Sum, compression=hvs.Compression.signsgd()))

    return step


def main():
    hvd.init()
    places.has_devices = lambda: True
    steps = {
        "tape, Signum, exchange, 1 bucket": of_tape(hvs.Compression.signum(0.9), "exchange"),
        "tape, SignSGD, exchange, 2 buckets": of_tape(hvs.Compression.signsgd(), "exchange", 0.001),
        "tape, SignSGD, counts, 1 bucket": of_tape(hvs.Compression.signsgd(), "counts"),
        "Keras, Signum": of_keras(hvk.Signum(0.01)),
        "Keras, LossScaleOptimizer": of_keras(keras.optimizers.LossScaleOptimizer(hvk.Signum(0.01))),
        "Horovod's allreduce": of_horovod(),
    }
    x = tf.constant(np.random.default_rng(hvd.rank()).standard_normal((8, 40), np.float32))
    for name, step in steps.items():
        traced = tf.function(step)
        traced(x)
        crossed = crossing(traced.get_concrete_function(x).graph.as_graph_def())
        if hvd.rank() == 0:
            print(f"{name}: {', '.join(f'{len(tensors)} {way}' for way, tensors in crossed.items())}", flush=True)


if __name__ == "__main__":
    main()
