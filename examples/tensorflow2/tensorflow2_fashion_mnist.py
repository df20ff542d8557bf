"""A CNN on Fashion-MNIST, custom training loop: mpirun -np 4 python tensorflow2_fashion_mnist.py

By Horovod's float32 SGD, signSGD or Signum. After Horovod's own tensorflow2_mnist.py. Lines that a plain Horovod script
does not have are tagged "horovod_sign".
"""

import time

import horovod.tensorflow as hvd
import keras
import tensorflow as tf
from fashion_mnist import (
    Progress,
    load,
    make_base_optimizer,
    make_model,
    make_schedule,
    parse_arguments,
)
from traffic import describe_bytes

import horovod_sign.tensorflow as hvs  # horovod_sign


def make_compression(args):
    """What is voted on; None: nothing is."""
    if args.optimizer == "sgd":
        return None
    signum = args.optimizer == "signum"
    return hvs.Compression.signum(args.momentum) if signum else hvs.Compression.signsgd()  # horovod_sign


def distribute(tape, compression):
    """A tape whose gradients are those of all ranks."""
    if compression is None:
        return hvd.DistributedGradientTape(tape)
    return hvs.DistributedGradientTape(tape, compression=compression)  # horovod_sign


def make_step(model, optimizer, compression):
    loss_function = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    variables = [v.value for v in model.trainable_variables]

    @tf.function
    def step(images, labels):
        with tf.GradientTape() as tape:
            loss = loss_function(labels, model(images, training=True))
        tape = distribute(tape, compression)
        optimizer.apply(tape.gradient(loss, variables), model.trainable_variables)
        return loss

    return step


def test(model, dataset, images):
    """The accuracy on the whole test set, each rank on its share."""
    right = tf.add_n([tf.math.count_nonzero(tf.argmax(model(x, training=False), 1) == y) for x, y in dataset])
    return float(hvd.allreduce(tf.cast(right, tf.float64), name="right", op=hvd.Sum)) / images


def main():
    args = parse_arguments(__doc__)
    hvd.init()
    keras.utils.set_random_seed(args.seed)
    name, train_set, test_set, sizes = load(args)
    steps = int(train_set.cardinality())

    model = make_model()
    # The tape's gradients are votes, so the step is plain SGD's: x <- x - lr (vote + weight_decay x).
    optimizer = make_base_optimizer(args, make_schedule(args, steps))
    compression = make_compression(args)
    step = make_step(model, optimizer, compression)
    hvs.broadcast_variables(model.weights, root_rank=0)  # horovod_sign: Horovod's own refuses Keras 3 variables

    if hvd.rank() == 0:
        print(f"{args.optimizer} on {name}: {sizes[0]:,} images, {hvd.size()} ranks", flush=True)
    start = time.time()
    for epoch in range(1, args.epochs + 1):
        progress = Progress(train_set, f"epoch {epoch}", shown=hvd.rank() == 0, lines=False)
        for number, (images, labels) in enumerate(progress):
            loss = step(images, labels)
            if hvd.rank() == 0 and number % args.log_interval == 0:
                progress.note(f"loss {float(loss):.4f}")
        accuracy = test(model, test_set, sizes[1])
        if hvd.rank() == 0:
            print(f"epoch {epoch}  test accuracy {100 * accuracy:.2f} %  ({time.time() - start:.0f} s)", flush=True)
    if hvd.rank() == 0:
        sent = None if compression is None else compression.bytes_sent  # horovod_sign
        print(describe_bytes(sent, model.count_params(), hvd.size()), flush=True)


if __name__ == "__main__":
    main()
