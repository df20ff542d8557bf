"""ResNet-20 by SGD, Adam, signSGD or Signum, in Keras: mpirun -np 4 python resnet20_keras.py --cifar FOLDER

Lines that a plain Keras script does not have are tagged "horovod_sign".
"""

import os
import sys
from pathlib import Path

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf

import horovod_sign.tensorflow.keras as hvs  # horovod_sign

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from devices import pin_tensorflow
from images import Batches
from progress import Progress
from resnet20 import VOTES, Log, load, parse_arguments
from traffic import describe_bytes


@keras.saving.register_keras_serializable("horovod_sign.examples")
class Shortcut(keras.layers.Layer):
    """Past a block: every other pixel and further, empty channels where the size halves."""

    def __init__(self, outputs: int, stride: int, **options):
        super().__init__(**options)
        self.outputs, self.stride = outputs, stride

    def call(self, x):
        x = x[:, :: self.stride, :: self.stride]
        added = self.outputs - x.shape[-1]
        return keras.ops.pad(x, ((0, 0), (0, 0), (0, 0), (added // 2, added - added // 2))) if added else x

    def get_config(self):
        return {**super().get_config(), "outputs": self.outputs, "stride": self.stride}


def make_model(shape, width: int, blocks: int) -> keras.Model:
    """6 * blocks + 2 layers; ResNet-20 has 3 blocks a stage."""

    def convolution(x, outputs, stride):
        options = {"padding": "valid", "use_bias": False, "kernel_initializer": "he_normal"}
        padded = keras.layers.ZeroPadding2D(1)(x)  # on both sides, as in PyTorch: "same" pads one side if stride is 2
        return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(
            keras.layers.Conv2D(outputs, 3, stride, **options)(padded)
        )

    x = inputs = keras.Input(shape)
    x = keras.layers.ReLU()(convolution(x, width, 1))
    for stage in range(3):
        for block in range(blocks):
            outputs, stride = width << stage, 2 if stage and not block else 1
            inner = keras.layers.ReLU()(convolution(x, outputs, stride))
            x = keras.layers.Add()([convolution(inner, outputs, 1), Shortcut(outputs, stride)(x)])
            x = keras.layers.ReLU()(x)
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


class _Float32:
    """The mean gradient of all ranks, in float32: Horovod's own wrapper reduces nothing with Keras 3."""

    def apply(self, grads, trainable_variables=None):
        return super().apply(hvd.grouped_allreduce(list(grads), op=hvd.Average, name="float32"), trainable_variables)


@keras.saving.register_keras_serializable("horovod_sign.examples")
class FloatSGD(_Float32, keras.optimizers.SGD):
    """SGD."""


@keras.saving.register_keras_serializable("horovod_sign.examples")
class FloatAdam(_Float32, keras.optimizers.Adam):
    """Adam."""


def make_optimizer(args):
    values = [args.lr / 10**i for i in range(len(args.milestones) + 1)]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([m - 1 for m in args.milestones], values)
    if args.optimizer == "sgd":
        return FloatSGD(schedule, args.momentum, weight_decay=args.weight_decay)
    if args.optimizer == "adam":
        return FloatAdam(schedule, weight_decay=args.weight_decay)
    if args.optimizer == "signsgd":
        optimizer = hvs.SignSGD(schedule, args.weight_decay)  # horovod_sign
    else:
        optimizer = hvs.Signum(schedule, args.momentum, args.weight_decay)  # horovod_sign
    return hvs.DistributedOptimizer(optimizer)  # horovod_sign


class Epochs:
    """Each call is the next epoch, as tf.data wants it."""

    def __init__(self, batches: Batches, done: int):
        self._batches, self._epoch = batches, done

    def __call__(self):
        self._epoch += 1
        yield from self._batches.epoch(self._epoch)


def dataset(images, batches: Batches, args, done: int):
    """This rank's share of all batches."""
    share = args.batch_size // hvd.size()
    signature = (tf.TensorSpec((share, *images.train_x.shape[1:])), tf.TensorSpec((share,), tf.int64))
    endless = tf.data.Dataset.from_generator(Epochs(batches, done), output_signature=signature)
    return endless.apply(tf.data.experimental.assert_cardinality(len(batches)))


class Report(keras.callbacks.Callback):
    """Progress, the test of all ranks after each epoch, and the checkpoint."""

    def __init__(self, args, images, steps: int, log: Log):
        super().__init__()
        self.args, self.images, self.steps, self.log = args, images, steps, log

    def on_epoch_begin(self, epoch, logs=None):
        self.progress = Progress(label=f"epoch {epoch + 1}", total=self.steps, shown=hvd.rank() == 0)

    def on_train_batch_end(self, batch, logs=None):
        self.progress.update()
        self.log.step(self.model.optimizer.bytes_sent if self.args.optimizer in VOTES else None)  # horovod_sign

    def on_epoch_end(self, epoch, logs=None):
        self.progress.close()
        self.average_statistics()
        self.log.epoch(epoch + 1, logs["loss"], self.test())
        if not self.args.checkpoint:
            return
        if self.args.optimizer in VOTES:  # horovod_sign
            hvs.save_model(self.model, self.args.checkpoint)  # horovod_sign: with the momenta of all ranks
        elif hvd.rank() == 0:
            self.model.save(f"{self.args.checkpoint}.part.keras")
            os.replace(f"{self.args.checkpoint}.part.keras", self.args.checkpoint)

    def average_statistics(self):
        """Each rank has normalized its own images: from here on all have the mean of what they saw."""
        moving = [v for v in self.model.non_trainable_variables if "moving" in v.path]
        means = hvd.grouped_allreduce([v.value.read_value() for v in moving], op=hvd.Average, name="statistics")
        for variable, mean in zip(moving, means, strict=True):
            variable.assign(mean)

    def test(self) -> float:
        """The accuracy on the whole test set, each rank on its share."""
        share = slice(hvd.rank(), None, hvd.size())
        x, y = self.images.test_x[share], self.images.test_y[share]
        outputs = self.model.predict(x, batch_size=250, verbose=0) if len(y) else np.zeros((0, 10))
        counts = tf.constant([np.sum(outputs.argmax(1) == y), len(y)], tf.float64)
        right, of = hvd.allreduce(counts, name="right", op=hvd.Sum).numpy()
        return float(right / of)


def resume(args):
    """The model of the checkpoint that rank 0 finds, or None."""
    found = args.checkpoint and hvd.rank() == 0 and os.path.exists(args.checkpoint)
    if not hvd.broadcast_object(bool(found), root_rank=0, name="checkpoint"):
        return None
    return (hvs.load_model if args.optimizer in VOTES else keras.saving.load_model)(args.checkpoint)  # horovod_sign


def main(argv=None):
    args = parse_arguments(__doc__, argv)
    hvd.init()
    pin_tensorflow(args, hvd.local_rank())
    keras.utils.set_random_seed(args.seed)

    images = load(args)
    batches = Batches(images, args.batch_size, hvd.rank(), hvd.size(), args.seed)
    model = resume(args)
    done = int(model.optimizer.iterations) // len(batches) if model else 0
    if model is None:
        model = make_model(images.train_x.shape[1:], args.width, args.blocks)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(make_optimizer(args), loss, jit_compile=False)  # Horovod's ops cannot run inside XLA

    coordinates = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    log = Log(args, hvd.rank() == 0, done, coordinates, hvd.size(), data=images.name, framework="Keras")
    if hvd.rank() == 0:
        what = f"{args.optimizer}, {coordinates:,} parameters, {images.name}, {hvd.size()} ranks"
        print(what + (f", from epoch {done} on" if done else ""), flush=True)
    callbacks = [hvs.callbacks.BroadcastGlobalVariablesCallback(0), Report(args, images, len(batches), log)]
    options = {"epochs": args.epochs, "initial_epoch": done, "callbacks": callbacks, "shuffle": False, "verbose": 0}
    model.fit(dataset(images, batches, args, done), **options)
    if hvd.rank() == 0 and done < args.epochs:
        sent = model.optimizer.bytes_sent if args.optimizer in VOTES else None  # horovod_sign
        print(describe_bytes(sent, coordinates, hvd.size()), flush=True)
    return model


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)  # as many ranks as cores
    tf.config.threading.set_inter_op_parallelism_threads(1)
    main()
