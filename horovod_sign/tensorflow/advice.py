"""What to do where TensorFlow, Horovod or Keras cannot be imported. Imports none of them by itself."""

import importlib.util
import os
import sys

from horovod_sign.building import first_line

_REINSTALL = "pip install tensorflow, then " + first_line("HOROVOD_WITH_TENSORFLOW=1")


def for_tensorflow(error: ImportError) -> str:
    """One sentence for an ImportError of `tensorflow` or `horovod.tensorflow`, which needs Keras too."""
    needs = "horovod_sign.tensorflow needs TensorFlow and a Horovod built for it"
    if "Keras" in str(error):
        if os.environ.get("TF_USE_LEGACY_KERAS") in ("1", "true", "True") and not importlib.util.find_spec("tf_keras"):
            return (
                "Horovod's TensorFlow needs Keras, and TF_USE_LEGACY_KERAS is set while the package tf_keras is not "
                "installed: unset TF_USE_LEGACY_KERAS (horovod_sign is for Keras 3), or pip install tf_keras"
            )
        try:
            import keras  # noqa: F401
        except Exception as reason:
            return _of_keras(reason)
    return f"{needs} ({error}): {_REINSTALL}"


def for_a_crash() -> str | None:
    """One sentence where Keras would load PyTorch, and it Triton, after TensorFlow: that is a segmentation fault."""
    if os.environ.get("KERAS_BACKEND") != "torch" or "torch" in sys.modules or not importlib.util.find_spec("triton"):
        return None
    cannot = "Keras cannot start on KERAS_BACKEND=torch where TensorFlow is loaded before Triton"
    return f"{cannot}, and horovod_sign needs it on TensorFlow: {_set_backend()}"


def for_keras(error: ImportError) -> str:
    """One sentence for an ImportError of `keras`."""
    return _of_keras(error)


def for_backend(version: str, backend: str) -> str | None:
    """One sentence for a Keras that is not Keras 3 on TensorFlow; None if it is."""
    found = f"horovod_sign.tensorflow.keras needs Keras 3 on its TensorFlow backend, found Keras {version} on {backend}"
    if not version.startswith("3."):
        return f"{found}: pip install 'keras>=3'"
    if backend != "tensorflow":
        return f"{found}: {_set_backend()}"
    return None


def _of_keras(reason: Exception) -> str:
    backend = os.environ.get("KERAS_BACKEND")
    if backend not in (None, "tensorflow"):
        text = str(reason).splitlines()[0] if str(reason) else type(reason).__name__
        cannot = f"Keras cannot start on KERAS_BACKEND={backend} ({text}), and horovod_sign needs it on TensorFlow"
        return f"{cannot}: {_set_backend()}"
    return f"horovod_sign.tensorflow.keras needs Keras 3 ({reason}): pip install 'keras>=3'"


def _set_backend() -> str:
    where = "" if "KERAS_BACKEND" in os.environ else " (it comes from ~/.keras/keras.json)"
    return f"set KERAS_BACKEND=tensorflow before Keras is imported{where}"
