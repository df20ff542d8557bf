"""Loading a model that was trained here: its optimizer is saved as the class it wraps, and wrapped again."""

import keras

from horovod_sign.tensorflow.keras.distributed import DistributedOptimizer


def load_model(filepath, custom_objects: dict | None = None, compile: bool = True, **options) -> keras.Model:
    """As `keras.saving.load_model`, and the optimizer of the loaded model is distributed again.

    The optimizer's state is what was saved. Each worker's momentum for votes around another optimizer
    (`Compression.signum`) is not saved and starts at zero.

    Args:
        filepath, custom_objects, compile: as in Keras; `safe_mode` may be among the options.
        **options: of `DistributedOptimizer`.

    Raises:
        ValueError: the model was saved without an optimizer.
    """
    keras_options = {"safe_mode": options.pop("safe_mode")} if "safe_mode" in options else {}
    model = keras.saving.load_model(filepath, custom_objects=custom_objects, compile=compile, **keras_options)
    if not compile:
        return model
    if getattr(model, "optimizer", None) is None:
        raise ValueError(
            f"{filepath} holds no optimizer: compile the model before saving it, or load with compile=False"
        )
    DistributedOptimizer(model.optimizer, **options)
    return model
