"""What the documentation has of Keras and of TensorFlow loops runs."""

import documents
import keras
import keras_tasks as tasks
import numpy as np
import pytest
import tensorflow as tf

RANKS = (2,)  # enough to vote
pytestmark = pytest.mark.usefixtures("shared_folder")  # pages write files


@pytest.mark.parametrize("page", ["keras.md", "tensorflow.md"])
def test_pages_run(page):
    model = documents.run_page(page)["model"]
    tasks.assert_replicas_identical(model.weights)


def test_the_readme_becomes_scripts_that_vote():
    model = keras.Sequential(
        [keras.Input((20,)), keras.layers.Dense(64), keras.layers.Dense(2, "softmax")]
    )  # as pages have
    names = {
        "keras": keras,
        "tf": tf,
        "model": model,
        "x": np.ones((4, 20)),
        "y": np.ones(4),
        "images": tf.ones((4, 20)),
    }
    documents.diff_of("README.md", "horovod_sign.tensorflow.keras").run(names)
    assert names["optimizer"].vote_statistics().coordinates == 20 * 64 + 64 + 64 * 2 + 2
    names["optimizer"] = keras.optimizers.SGD(0.1)
    loss = keras.losses.sparse_categorical_crossentropy
    names |= {"labels": tf.ones(4), "variables": model.trainable_variables, "loss_function": loss}
    documents.diff_of("README.md", "horovod_sign.tensorflow").run(names)
    assert names["compression"].vote_statistics().coordinates == 20 * 64 + 64 + 64 * 2 + 2
