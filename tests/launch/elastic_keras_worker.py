"""A Keras worker of an elastic job, like elastic_worker.py: see test_elastic.py.

Of three workers one dies at step 5; later a new one joins; all end with the same parameters.
"""

import os
import sys
import time
from pathlib import Path

import imports

imports.import_keras()
import horovod.tensorflow as hvd  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402

import horovod_sign.tensorflow.keras as hvs  # noqa: E402
from horovod_sign.tensorflow.keras.states import OptimizerStates  # noqa: E402

folder, host = Path(sys.argv[1]), os.environ["HOROVOD_HOSTNAME"]
late = (folder / "died").exists()
just_joined = late


def log(text):
    with open(folder / "log", "a") as file:
        file.write(text + "\n")


class Steps(keras.callbacks.Callback):
    """Counts them, dies where it should, and lets a new worker join."""

    def on_train_batch_begin(self, batch, logs=None):
        if state.step == 5 and host == "127.0.0.1" and not late:
            (folder / "died").touch()
            os._exit(1)

    def on_train_batch_end(self, batch, logs=None):
        state.step += 1
        if hvd.rank() == 0:
            log(f"step {state.step} size={hvd.size()}")
            if state.step == 10:
                (folder / "hosts").write_text("localhost:3\n")
        time.sleep(0.1)


@hvs.elastic.run
def train(state):
    global just_joined
    momentum = OptimizerStates(model.optimizer).slots[0].numpy().ravel()
    everyone = hvd.allgather(np.append(momentum, np.float32(just_joined))[None], name="momenta").numpy()
    just_joined = False
    if everyone[:, -1].any():  # a worker has just joined
        old = everyone[everyone[:, -1] == 0][:, :-1]
        new = everyone[everyone[:, -1] == 1][:, :-1]
        fair = np.allclose(new, old.mean(0), rtol=1e-5) and bool(np.abs(old).sum())
        log(f"joined size={hvd.size()} the mean of the others: {fair}, of {len(set(map(tuple, old.tolist())))} momenta")
    while state.step < 2000:
        if state.step >= 30 and hvd.size() == 3 and (folder / "died").exists():
            break
        x = np.random.default_rng([state.step, hvd.rank()]).standard_normal((1, 1000)).astype(np.float32)
        commit = hvs.elastic.CommitStateCallback(state)
        model.fit(x, np.zeros((1, 1)), verbose=0, callbacks=[Steps(), commit])


hvd.init()
keras.utils.set_random_seed(hvd.rank())
model = keras.Sequential([keras.Input((1000,)), keras.layers.Dense(1, use_bias=False)])
optimizer = hvs.DistributedOptimizer(hvs.Signum(0.01))
model.compile(optimizer, loss=lambda truth, output: keras.ops.mean(output), jit_compile=False)
state = hvs.elastic.KerasState(model, step=0)
train(state)
values = hvd.allgather(model.trainable_variables[0].numpy().reshape(1, -1), name="values").numpy()
if hvd.rank() == 0:
    log(f"done size={hvd.size()} step={state.step} identical={len(np.unique(values, axis=0)) == 1}")
