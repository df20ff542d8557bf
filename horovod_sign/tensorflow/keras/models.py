"""Keras models: whether their variables are there yet, their optimizers by name, and whether those vote."""

from typing import Any

import keras

from horovod_sign.tensorflow.handshake import agree
from horovod_sign.tensorflow.keras.distributed import inner_optimizer, is_distributed


def is_built(model: keras.Model) -> bool:
    """Whether the model and all its layers have their variables; Keras lets the first batch make what is missing."""
    return model.built and all(layer.built for layer in model._flatten_layers())


def trains_by_itself(model: keras.Model) -> bool:
    """Whether the model has a training step of its own, so that Keras's `optimizer` may not be what steps."""
    return getattr(model.train_step, "__func__", None) is not keras.Model.train_step


def optimizers_of(model: keras.Model) -> dict[str, keras.optimizers.Optimizer]:
    """The optimizers that are attributes of a model, by name, also in lists and dictionaries; each of them once."""
    found = {}
    for name, value in sorted(vars(model).items(), key=_attribute_order):
        if isinstance(value, keras.optimizers.Optimizer):
            found[name] = value
        elif name.startswith("_"):  # what Keras and TensorFlow keep for themselves refers to all that is tracked
            continue
        elif isinstance(value, dict):
            found.update({f"{name}[{key!r}]": each for key, each in value.items()})
        elif isinstance(value, list | tuple):
            found.update({f"{name}[{i}]": each for i, each in enumerate(value)})
    optimizers, seen = {}, set()
    for name, value in found.items():
        if isinstance(value, keras.optimizers.Optimizer) and id(value) not in seen:
            seen.add(id(value))
            optimizers[name] = value
    return optimizers


def _attribute_order(item: tuple[str, Any]) -> tuple[bool, bool, str]:
    """Keras's own name first, private ones last: of several names of an optimizer users know the first."""
    name = item[0]
    return name != "optimizer", name.startswith("_"), name


def stepping(model: keras.Model) -> dict[str, keras.optimizers.Optimizer]:
    """The optimizers of a model, but for the one that Keras gives to a model that has others, and that never steps."""
    optimizers = optimizers_of(model)
    used = {name: each for name, each in optimizers.items() if name != "optimizer" or each.built}
    return used if trains_by_itself(model) and used else optimizers


def voting(model: keras.Model) -> dict[str, keras.optimizers.Optimizer]:
    """Those optimizers of a model that `DistributedOptimizer` has made."""
    return {name: each for name, each in optimizers_of(model).items() if is_distributed(each)}


def build_optimizer(model: keras.Model) -> None:
    """Builds the optimizer of a model that is built, if it is Keras that will give it all trainable variables."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built and is_built(model) and not trains_by_itself(model):
        optimizer.build(model.trainable_variables)


def agree_to_vote(model: keras.Model, what: str, process_set: Any) -> None:
    """Raises TypeError or ValueError on all ranks if on some of them `fit` certainly takes no vote. A collective."""
    if process_set.size() > 1:
        items = [("what votes", ", ".join(voting(model)) or "no optimizer")]
        agree(what, items, cannot_vote(model), process_set)


def cannot_vote(model: keras.Model) -> TypeError | None:
    """What to raise if training this model by `fit` certainly takes no vote."""
    optimizer = getattr(model, "optimizer", None)
    by_fit = getattr(model, "train_function", None) is not None
    if (
        optimizer is None
        or is_distributed(optimizer)
        or not by_fit
        or trains_by_itself(model)
        or not _is_known(optimizer)
    ):
        return None
    return TypeError(
        f"model.optimizer is a {type(inner_optimizer(optimizer)).__name__} that does not vote, so each rank would "
        "train alone: wrap it by hvs.DistributedOptimizer; hvs.load_model does so, Keras's, pickle and deepcopy do not"
    )


def may_not_vote(model: keras.Model) -> bool:
    """Whether there is an optimizer that does not vote, though the model's own training step may see to it."""
    return not all(is_distributed(each) for each in stepping(model).values())


def _is_known(optimizer: Any) -> bool:
    """Whether the optimizer's class is Keras's or ours, and no user's, which might reduce gradients by itself."""
    both = (optimizer, inner_optimizer(optimizer))
    return all(type(each).__module__.split(".")[0] in ("keras", "horovod_sign") for each in both)
