"""A CNN on Fashion-MNIST by model.fit: mpirun -np 4 python tensorflow2_keras_fashion_mnist.py

By float32 SGD, signSGD or Signum. After Horovod's own tensorflow2_keras_mnist.py. Lines that a plain Horovod script
does not have are tagged "horovod_sign".
"""

import time

import horovod.tensorflow as hvd
import keras
from fashion_mnist import Progress, load, make_model, make_schedule, parse_arguments
from traffic import describe_bytes

import horovod_sign.tensorflow.keras as hvs  # horovod_sign


class FloatSGD(keras.optimizers.SGD):
    """SGD on the mean gradient of all ranks, in float32: Horovod's own wrapper reduces nothing with Keras 3."""

    def apply(self, grads, trainable_variables=None):
        return super().apply(hvd.grouped_allreduce(list(grads), op=hvd.Average, name="sgd"), trainable_variables)


def make_optimizer(args, schedule):
    if args.optimizer == "sgd":
        return FloatSGD(schedule, args.momentum, weight_decay=args.weight_decay or None)
    if args.optimizer == "signsgd":
        optimizer = hvs.SignSGD(schedule, args.weight_decay or None)  # horovod_sign
    else:
        optimizer = hvs.Signum(schedule, args.momentum, args.weight_decay or None)  # horovod_sign
    return hvs.DistributedOptimizer(optimizer)  # horovod_sign


class Report(keras.callbacks.Callback):
    """What the other examples print, by rank 0."""

    def __init__(self, args, steps):
        super().__init__()
        self.args, self.steps, self.start = args, steps, time.time()

    def on_epoch_begin(self, epoch, logs=None):
        self.progress = Progress(label=f"epoch {epoch + 1}", total=self.steps, lines=False)

    def on_train_batch_end(self, batch, logs=None):
        if batch % self.args.log_interval == 0:
            self.progress.note(f"loss {logs['loss']:.4f}")
        self.progress.update()

    def on_epoch_end(self, epoch, logs=None):
        self.progress.close()
        seconds = time.time() - self.start
        print(f"epoch {epoch + 1}  test accuracy {100 * logs['val_accuracy']:.2f} %  ({seconds:.0f} s)", flush=True)


def main():
    args = parse_arguments(__doc__)
    hvd.init()
    keras.utils.set_random_seed(args.seed)
    name, train_set, test_set, sizes = load(args)
    steps = int(train_set.cardinality())

    model = make_model()
    model.compile(
        make_optimizer(args, make_schedule(args, steps)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,  # Horovod's ops cannot run inside XLA
    )
    callbacks = [
        hvs.callbacks.BroadcastGlobalVariablesCallback(0),  # horovod_sign: Horovod's own do not work with Keras 3
        hvs.callbacks.MetricAverageCallback(),  # horovod_sign
    ]
    if hvd.rank() == 0:
        print(f"{args.optimizer} on {name}: {sizes[0]:,} images, {hvd.size()} ranks", flush=True)
        callbacks.append(Report(args, steps))
    model.fit(train_set, shuffle=False, validation_data=test_set, epochs=args.epochs, callbacks=callbacks, verbose=0)
    if hvd.rank() == 0:
        sent = None if args.optimizer == "sgd" else model.optimizer.bytes_sent  # horovod_sign
        print(describe_bytes(sent, model.count_params(), hvd.size()), flush=True)


if __name__ == "__main__":
    main()
