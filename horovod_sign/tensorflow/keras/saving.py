"""Checkpoints: every rank has a momentum of its own, and a checkpoint is one file.

    hvs.save_model(model, "model.keras")                    # on all ranks; rank 0 writes
    ...
    model = hvs.load_model("model.keras")                   # on all ranks
    model.fit(..., initial_epoch=epoch)

On as many ranks as saved it, each gets its own momentum back, bit for bit. On another number of ranks, each starts
from the mean of the saved momenta. What rank 0 saved alone by `model.save` loads too: all ranks that load it then have
rank 0's momentum. Keras loads either file without this package, as a model whose optimizer has rank 0's momentum.
"""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import h5py
import horovod.tensorflow as hvd
import keras
import numpy as np

from horovod_sign.tensorflow.keras import models
from horovod_sign.tensorflow.keras.distributed import DistributedOptimizer, is_distributed, step_of
from horovod_sign.tensorflow.keras.states import OptimizerStates
from horovod_sign.tensorflow.states import RankStates

# Beside Keras's own files in its archive. Keras does not mind.
_ALL_RANKS = "horovod_sign_momenta.npz"


def save_model(model: keras.Model, filepath: str | os.PathLike[str]) -> None:
    """Saves a model with its distributed optimizer, and the momenta of all ranks, in one file in Keras's format.

    A collective of the ranks that vote; the first of them writes, and replaces an older file only when all is written.
    It alone holds M times the momentum for it, M the number of ranks. Gradients that are summed for a later vote
    (`gradient_accumulation_steps`) are not saved: save when a vote is done.

    Args:
        model: compiled with an optimizer made by `DistributedOptimizer`.
        filepath: ends in .keras; of rank 0.

    Raises:
        ValueError: the name does not end in .keras, or the model is not compiled; on all ranks: it is built on some
            ranks only.
        TypeError: the optimizer is not distributed.
        OSError: the file could not be written. On all ranks.
    """
    path = Path(filepath)
    if path.suffix != ".keras":
        raise ValueError(f"hvs.save_model writes Keras's format: end the name in .keras, got {path.name!r}")
    check_saving(model)
    models.build_optimizer(model)
    process_set = step_of(model.optimizer).process_set
    writes = process_set.rank() == 0
    gathered = _gathered(model.optimizer, process_set, writes)
    error = _write(model, path, gathered) if writes else None
    root = process_set.ranks[0] if process_set.ranks else 0
    error = hvd.broadcast_object(error, root, name="horovod_sign.tf.save_model", process_set=process_set)
    if error is not None:
        raise OSError(error)


def load_model(
    filepath: str | os.PathLike[str],
    custom_objects: dict | None = None,
    compile: bool = True,
    custom_optimizers: Any = None,
    **options: Any,
) -> keras.Model:
    """As `keras.saving.load_model`, and the optimizer of the loaded model is distributed again.

    From a file of `save_model`, each rank gets its own momentum back, or the mean of all on another number of ranks.
    From a file of `model.save`, the optimizer's state is what was saved; a momentum for votes around another optimizer
    (`Compression.signum`) is not in it and starts at zero.

    Args:
        filepath, custom_objects, compile: as in Keras; `safe_mode` may be among the options.
        custom_optimizers: Horovod's: classes of optimizers, added to the custom objects. May also stand second, as in
            Horovod.
        **options: of `DistributedOptimizer`, the same as when the model was saved. Horovod's `legacy_opts=False`, which
            Keras 3 does not have, is taken too.

    Raises:
        ValueError: the model was saved without an optimizer; it was saved with momenta for `Compression.signum`, which
            is not among the options.
    """
    if isinstance(custom_objects, list | tuple):  # Horovod's order: custom_optimizers, custom_objects
        custom_optimizers, custom_objects = custom_objects, compile if isinstance(compile, dict) else None
        compile = compile is not False
    if options.pop("legacy_opts", False):
        raise TypeError("hvs.load_model has no legacy_opts: Keras 3 has no legacy optimizers; leave it out")
    keras_options = {"safe_mode": options.pop("safe_mode")} if "safe_mode" in options else {}
    custom_objects = {cls.__name__: cls for cls in custom_optimizers or ()} | (custom_objects or {})
    model = keras.saving.load_model(filepath, custom_objects=custom_objects, compile=compile, **keras_options)
    if not compile:
        return model
    why = f"{filepath} holds no optimizer: compile the model before saving it, or load with compile=False"
    _optimizer(model, why)
    if h5py.is_hdf5(filepath):
        _rebuild_optimizer(model, filepath)
    DistributedOptimizer(model.optimizer, **options)
    gathered = _read(filepath)
    if gathered:
        own = OptimizerStates(model.optimizer)
        if len(own.slots) != sum(key.startswith("momentum") for key in gathered):
            raise ValueError(
                f"{filepath} holds momenta that the loaded optimizer does not vote by: give load_model the compression="
                "that the optimizer had"
            )
        own.take(gathered)
    return model


def _rebuild_optimizer(model: Any, filepath: str | os.PathLike[str]) -> None:
    """Loads the optimizer of an .h5 file, which Keras 3 builds for no variables, so that it could not go on."""
    optimizer = model.optimizer
    if not optimizer.built or len(optimizer._trainable_variables) == len(model.trainable_variables):
        return
    # Not where this module is imported: a Keras that has moved it costs users of .h5 alone.
    from keras.src.legacy.saving.legacy_h5_format import load_optimizer_weights_from_hdf5_group

    model.optimizer = type(optimizer).from_config(optimizer.get_config())
    model.optimizer.build(model.trainable_variables)
    with h5py.File(filepath) as file:
        model.optimizer.set_weights(load_optimizer_weights_from_hdf5_group(file))


def check_saving(model: keras.Model) -> None:
    """Raises, in one sentence, if `save_model` cannot save the momenta of this model's optimizer."""
    optimizer = _optimizer(model, "save_model needs a compiled model: call model.compile first")
    others = " and ".join(f"model.{name}" for name in models.voting(model) if name != "optimizer")
    if not is_distributed(optimizer) and others:
        raise TypeError(
            f"hvs.save_model saves the momenta of model.optimizer, but this model votes by {others}: save its parts by "
            "Keras's save or save_weights on one rank"
        )
    step_of(optimizer)


def _gathered(optimizer: Any, process_set: Any, wanted: bool) -> dict[str, np.ndarray]:
    """The momenta of all ranks; none of an optimizer that is not built yet, which must be so on all ranks."""
    own = OptimizerStates(optimizer) if optimizer.built else RankStates([], [], None, process_set)
    built = ("the optimizer", "built" if optimizer.built else "not built")
    return own.gather("save_model", [built], wanted=wanted)


def _optimizer(model: Any, why: str) -> Any:
    if getattr(model, "optimizer", None) is None:
        raise ValueError(why)
    return model.optimizer


def _write(model: Any, path: Path, gathered: dict) -> str | None:
    """Writes the file; what went wrong, if anything."""
    partial = path.with_name(f".{path.stem}.partial.keras")
    try:
        model.save(partial)
        with zipfile.ZipFile(partial, "a") as archive, archive.open(_ALL_RANKS, "w", force_zip64=True) as file:
            np.savez(file, **gathered)
        os.replace(partial, path)
    except Exception as error:  # the other ranks wait for the outcome
        partial.unlink(missing_ok=True)
        return f"hvs.save_model could not write {path}: {error}"
    return None


def _read(filepath: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The momenta of all ranks in a file; none in one that `model.save` wrote."""
    if not zipfile.is_zipfile(filepath):
        return {}
    with zipfile.ZipFile(filepath) as archive:
        if _ALL_RANKS not in archive.namelist():
            return {}
        with np.load(io.BytesIO(archive.read(_ALL_RANKS)), allow_pickle=False) as saved:
            return dict(saved)
