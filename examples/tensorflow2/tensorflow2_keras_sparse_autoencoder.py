"""A sparse autoencoder by model.fit: mpirun -np 4 python tensorflow2_keras_sparse_autoencoder.py

By Signum, or by Adam on votes. All of Horovod's names come from horovod_sign.tensorflow.keras, by one changed import
line. Lines that a plain Horovod script does not have are tagged "horovod_sign".
"""

import sys
import time
from pathlib import Path

import horovod.tensorflow as horovod
import keras
import numpy as np
import tensorflow as tf

import horovod_sign.tensorflow.keras as hvd  # horovod_sign: in place of `import horovod.tensorflow.keras as hvd`

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from devices import pin_tensorflow
from progress import Progress
from sparse_autoencoder import describe, load, parse_arguments
from traffic import describe_bytes


@keras.saving.register_keras_serializable("horovod_sign.examples")
class SparseAutoencoder(keras.Model):
    """Explains an input by the k features that answer most; unit vectors of the decoder are what features mean."""

    def __init__(self, inputs: int, features: int, k: int, **options):
        super().__init__(**options)
        self.inputs_, self.features, self.k = inputs, features, k
        self.encoder = self.add_weight(shape=(inputs, features), initializer=self._start, name="encoder")
        self.encoder_bias = self.add_weight(shape=(features,), initializer="zeros", name="encoder_bias")
        # Unit vectors after each step, or strengths could shrink at no cost.
        unit = keras.constraints.UnitNorm(axis=1)
        self.decoder = self.add_weight(shape=(features, inputs), constraint=unit, name="decoder")
        self.bias = self.add_weight(shape=(inputs,), initializer="zeros", name="bias")
        self.decoder.assign(unit(keras.ops.transpose(self.encoder)))

    def _start(self, shape, dtype=None):
        return keras.random.uniform(shape, -(shape[0] ** -0.5), shape[0] ** -0.5, dtype=dtype)  # PyTorch's

    def strengths(self, x):
        """How strongly features are on: all but k are off."""
        answers = keras.ops.relu(keras.ops.matmul(x - self.bias, self.encoder) + self.encoder_bias)
        least = keras.ops.top_k(answers, self.k)[0][:, -1:]
        return keras.ops.where(answers >= least, answers, 0.0)

    def call(self, x):
        return keras.ops.matmul(self.strengths(x), self.decoder) + self.bias

    def get_config(self):
        return {"inputs": self.inputs_, "features": self.features, "k": self.k}


@keras.saving.register_keras_serializable("horovod_sign.examples")
class FloatAdam(keras.optimizers.Adam):
    """Adam on the mean gradient of all ranks, in float32: Horovod's own wrapper reduces nothing with Keras 3."""

    def apply(self, grads, trainable_variables=None):
        return super().apply(horovod.grouped_allreduce(list(grads), op=hvd.Average, name="adam"), trainable_variables)


def make_optimizer(args, steps: int):
    schedule = keras.optimizers.schedules.CosineDecay(args.lr, args.epochs * steps)
    if args.optimizer == "float32-adam":
        return FloatAdam(schedule)
    optimizer = keras.optimizers.Adam(schedule)
    if args.optimizer == "signum":
        optimizer = hvd.Signum(schedule, args.momentum)  # horovod_sign
    return hvd.DistributedOptimizer(optimizer)


def test(model, x):
    """(fraction of the variance that is not explained, features that no patch turns on), each rank on its share."""
    mine = x[horovod.rank() :: horovod.size()]
    fired, error = np.zeros(model.features), 0.0
    for batch in np.array_split(mine, len(mine) // 1000 + 1):
        strengths = model.strengths(batch).numpy()
        error += np.square(strengths @ model.decoder.numpy() + model.bias.numpy() - batch).sum(dtype=np.float64)
        fired += (strengths > 0).sum(axis=0)
    error, fired = (
        horovod.allreduce(tf.constant(each, tf.float64), name=name, op=horovod.Sum).numpy()
        for name, each in (("error", error), ("fired", fired))
    )
    return float(error / np.square(x - x.mean(0)).sum(dtype=np.float64)), int((fired == 0).sum())


class Report(keras.callbacks.Callback):
    """What the other example prints, by rank 0; all ranks test."""

    def __init__(self, args, steps, test_x):
        super().__init__()
        self.args, self.steps, self.test_x, self.start = args, steps, test_x, time.time()

    def on_epoch_begin(self, epoch, logs=None):
        shown = hvd.rank() == 0
        self.progress = Progress(label=f"epoch {epoch + 1}", total=self.steps, shown=shown, lines=False)

    def on_train_batch_end(self, batch, logs=None):
        if hvd.rank() == 0 and batch % self.args.log_interval == 0:
            self.progress.note(f"squared error {logs['loss']:.4f}")
        self.progress.update()

    def on_epoch_end(self, epoch, logs=None):
        self.progress.close()
        unexplained, dead = test(self.model, self.test_x)
        if hvd.rank() == 0:
            seconds = time.time() - self.start
            print(describe(epoch + 1, unexplained, dead, self.args.features, seconds), flush=True)


def main(argv=None):
    args = parse_arguments(__doc__, argv)
    hvd.init()
    pin_tensorflow(args, hvd.local_rank())
    keras.utils.set_random_seed(args.seed)

    name, train_x, test_x = load(args)
    steps = len(train_x) // hvd.size() // args.batch_size
    mine = train_x[hvd.rank() :: hvd.size()][: steps * args.batch_size]

    if args.resume:
        in_float32 = args.optimizer == "float32-adam"
        model = keras.saving.load_model(args.resume) if in_float32 else hvd.load_model(args.resume)
        done = int(model.optimizer.iterations) // steps
    else:
        model, done = SparseAutoencoder(train_x.shape[1], args.features, args.k), 0
        model.compile(make_optimizer(args, steps), loss="mse", jit_compile=False)  # Horovod's ops cannot run inside XLA
    callbacks = [hvd.callbacks.BroadcastGlobalVariablesCallback(0), Report(args, steps, test_x)]
    if args.checkpoint and args.optimizer != "float32-adam":
        callbacks.append(hvd.callbacks.SaveModelCallback(args.checkpoint))  # horovod_sign: momenta of all ranks
    elif args.checkpoint and hvd.rank() == 0:
        callbacks.append(keras.callbacks.ModelCheckpoint(args.checkpoint))
    if hvd.rank() == 0:
        print(f"{args.optimizer} on {name}: {len(train_x):,} patches, {hvd.size()} ranks", flush=True)
    model.fit(
        mine,
        mine,
        args.batch_size,
        epochs=args.epochs,
        initial_epoch=done,
        callbacks=callbacks,
        shuffle=True,
        verbose=0,
    )
    if hvd.rank() == 0:
        sent = None if args.optimizer == "float32-adam" else model.optimizer.bytes_sent  # horovod_sign
        print(describe_bytes(sent, model.count_params(), hvd.size()), flush=True)
    return model


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)  # as many ranks as cores
    tf.config.threading.set_inter_op_parallelism_threads(1)
    main()
