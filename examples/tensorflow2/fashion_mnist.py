"""What the two TensorFlow examples share: data, model, schedule. The same as in the PyTorch example."""

import sys
from pathlib import Path

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data
from arguments import LEARNING_RATES
from arguments import parse_arguments as parse_arguments  # for the two examples
from devices import pin_tensorflow
from progress import Progress as Progress  # the same


def load(args):
    """(name, this rank's training set, this rank's test set, (training images, test images) in all)."""
    pin_tensorflow(args, hvd.local_rank())
    tf.config.threading.set_intra_op_parallelism_threads(1)  # as many ranks as cores
    tf.config.threading.set_inter_op_parallelism_threads(1)
    images = data.load(args.data_dir)
    train_set = tf.data.Dataset.from_generator(
        _Epochs(images.train_x[..., None], images.train_y, args),
        output_signature=(tf.TensorSpec((args.batch_size, 28, 28, 1)), tf.TensorSpec((args.batch_size,), tf.int64)),
    )
    steps = len(images.train_x) // hvd.size() // args.batch_size
    train_set = train_set.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(2)
    share = slice(hvd.rank(), None, hvd.size())
    test_set = tf.data.Dataset.from_tensor_slices((images.test_x[share, ..., None], images.test_y[share])).batch(500)
    return images.name, train_set, test_set, (len(images.train_x), len(images.test_x))


class _Epochs:
    """Each call is an epoch: a new order of all images, the same on all ranks, of which each rank takes its share."""

    def __init__(self, x, y, args):
        self._x, self._y, self._batch, self._random = x, y, args.batch_size, np.random.default_rng(args.seed)

    def __call__(self):
        order = self._random.permutation(len(self._x))[hvd.rank() :: hvd.size()]
        for batch in range(len(self._x) // hvd.size() // self._batch):
            chosen = order[batch * self._batch : (batch + 1) * self._batch]
            yield self._x[chosen], self._y[chosen]


def make_model() -> keras.Model:
    # PyTorch's initial weights: both uniform in +-1/sqrt(inputs).
    def layer(kind, inputs, *args, **kwargs):
        uniform = keras.initializers.RandomUniform(-(inputs**-0.5), inputs**-0.5)
        bias = keras.initializers.RandomUniform(-(inputs**-0.5), inputs**-0.5)
        return kind(*args, kernel_initializer=uniform, bias_initializer=bias, **kwargs)

    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layer(keras.layers.Conv2D, 9, 16, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(2),
            layer(keras.layers.Conv2D, 16 * 9, 32, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            layer(keras.layers.Dense, 32 * 7 * 7, 128, activation="relu"),
            layer(keras.layers.Dense, 128, 10),
        ]
    )


def make_schedule(args, steps: int):
    """The learning rate, down to 0 along half a cosine."""
    return keras.optimizers.schedules.CosineDecay(args.lr or LEARNING_RATES[args.optimizer], args.epochs * steps)


def make_base_optimizer(args, schedule):
    momentum = args.momentum if args.optimizer == "sgd" else 0.0
    return keras.optimizers.SGD(schedule, momentum, weight_decay=args.weight_decay or None)
