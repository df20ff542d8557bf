"""SignSGD and Signum as plain Keras optimizers, saving and loading, errors. One process, without mpirun."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
hvd = pytest.importorskip("horovod.tensorflow")
import keras  # noqa: E402
import simulation  # noqa: E402
from tf_rules import TwoMomenta  # noqa: E402

import horovod_sign.tensorflow.keras as hvs  # noqa: E402

RANKS = (1,)  # what is right on one rank too

STEPS = 6


def apply(optimizer, x, gradients):
    for g in gradients:
        optimizer.apply([tf.constant(g, x.dtype)], [x])


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("warmup", [False, True])
def test_signum_equals_numpy(warmup, distributed):
    random = np.random.default_rng(0)
    gradients = random.standard_normal((STEPS, 50)).astype(np.float32)
    gradients[2, :3] = [np.inf, -np.inf, np.nan]
    x = keras.Variable(random.standard_normal(50).astype(np.float32))
    expected, m = x.numpy().copy(), np.zeros(50, np.float32)
    optimizer = hvs.Signum(0.01, 0.5, weight_decay=0.1, warmup=warmup)
    apply(hvs.DistributedOptimizer(optimizer) if distributed else optimizer, x, gradients)
    for step, g in enumerate(gradients):
        finite = np.isfinite(g)
        m = np.where(finite, np.float32(0.5) * m + np.float32(0.5) * np.where(finite, g, 0), m)
        vote = np.nan_to_num(np.sign(g if warmup and step < 1 else np.where(finite, m, g)))
        expected = expected - np.float32(0.01) * (vote + np.float32(0.1) * expected)
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_signsgd_in_every_dtype(dtype):
    x = keras.Variable([1.0, 1.0, 1.0, 1.0], dtype=dtype)
    apply(hvs.SignSGD(0.25), x, [[3.0, -1e-7, 0.0, np.nan]])
    np.testing.assert_array_equal(np.array(x.numpy(), np.float64), [0.75, 1.25, 1.0, 1.0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_signum_with_16_bits_computes_in_32(dtype):
    """The momentum is float32 and a step is rounded once: 0.9 of a momentum of 16 bits would be another."""
    random = np.random.default_rng(3)
    x = keras.Variable(random.standard_normal(2000), dtype=dtype)
    kind = np.array(x.numpy()).dtype
    gradients = random.standard_normal((5, 2000)).astype(kind)
    optimizer, expected, m = hvs.Signum(0.0123, 0.9), np.array(x.numpy()), np.zeros(2000, np.float32)
    for g in gradients:
        optimizer.apply([tf.constant(g)], [x])
        m = np.float32(0.9) * m + np.float32(1 - 0.9) * g.astype(np.float32)
        expected = (expected.astype(np.float32) - np.float32(0.0123) * np.sign(m)).astype(kind)
    ((slot,),) = optimizer.states_of([x]).slots
    np.testing.assert_array_equal(slot, m)
    np.testing.assert_array_equal(np.array(x.numpy()), expected)


@pytest.mark.parametrize("distributed", [False, True])
def test_lion_equals_numpy(distributed):
    random = np.random.default_rng(0)
    gradients, x = random.standard_normal((STEPS, 50)).astype(np.float32), keras.Variable(np.zeros(50, np.float32))
    optimizer = hvs.Lion(0.5, beta_1=0.25, beta_2=0.75)
    assert hvs.Lion.from_config(optimizer.get_config()).rule == optimizer.rule
    apply(hvs.DistributedOptimizer(optimizer) if distributed else optimizer, x, gradients)
    expected, m = np.zeros(50, np.float32), np.zeros(50, np.float32)
    for g in gradients:
        expected -= np.float32(0.5) * np.sign(np.float32(0.25) * m + np.float32(0.75) * g)
        m = np.float32(0.75) * m + np.float32(0.25) * g
    np.testing.assert_array_equal(x.numpy(), expected)
    np.testing.assert_array_equal(optimizer.states_of([x]).slots[0][0], m)


@pytest.mark.parametrize("distributed", [False, True])
def test_a_rule_of_ones_own_equals_numpy(distributed):
    random = np.random.default_rng(0)
    gradients = random.standard_normal((STEPS, 50)).astype(np.float32)
    gradients[3, :3] = [np.inf, -np.inf, np.nan]
    x, optimizer = keras.Variable(np.zeros(50, np.float32)), hvs.SignOptimizer(0.5, TwoMomenta())
    workers = simulation.Workers([np.zeros(50)], 1, simulation.TWO_MOMENTA)
    apply(hvs.DistributedOptimizer(optimizer) if distributed else optimizer, x, gradients)
    np.testing.assert_array_equal(x.numpy(), -0.5 * sum(workers.votes([[g]])[0].astype(np.float32) for g in gradients))
    np.testing.assert_array_equal(optimizer.states_of([x]).slots[0], workers.states[0][0])
    again = hvs.SignOptimizer.from_config(optimizer.get_config())
    assert again.rule == TwoMomenta() != TwoMomenta((0.5, 0.5))
    with pytest.raises(ValueError, match="votes by the rule Unheard, which is not known here: import its class first"):
        hvs.SignOptimizer.from_config({**optimizer.get_config(), "rule": {"class_name": "Unheard", "config": {}}})


def test_name_and_passes_are_the_optimizer_s():
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD(0.1), name="mine", backward_passes_per_step=3)
    assert (optimizer.name, optimizer.gradient_accumulation_steps) == ("mine", 3)


@pytest.mark.fault("group-options")
@pytest.mark.fault("schedulers")
def test_a_schedule_and_exclusions_from_weight_decay():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.5, 0.25])
    optimizer = hvs.SignSGD(schedule, weight_decay=0.5)
    x, bias = keras.Variable([4.0], name="kernel"), keras.Variable([4.0], name="bias")
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    for _ in range(2):
        optimizer.apply([tf.zeros(1), tf.zeros(1)], [x, bias])
    np.testing.assert_allclose(x.numpy(), [4.0 * 0.75 * 0.875])
    np.testing.assert_array_equal(bias.numpy(), [4.0])


def test_config_round_trip():
    optimizer = hvs.Signum(0.01, 0.8, weight_decay=0.1, warmup=True, gradient_accumulation_steps=2, name="mine")
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(copy) is hvs.Signum and copy.get_config() == optimizer.get_config()
    assert (copy.momentum, copy.warmup, copy.gradient_accumulation_steps) == (0.8, True, 2)


@pytest.mark.fault("wrapped-twice")
@pytest.mark.parametrize(
    "make", [lambda: keras.optimizers.AdamW(0.01), lambda: hvs.Signum(0.01)], ids=["AdamW", "Signum"]
)
def test_wrapped_optimizer_saves_as_its_class(make, tmp_path):
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    optimizer = make()
    net.compile(hvs.DistributedOptimizer(optimizer), loss="mse")
    net.fit(np.ones((8, 3)), np.ones((8, 2)), batch_size=4, verbose=0)
    net.save(tmp_path / "model.keras")
    plain = keras.saving.load_model(tmp_path / "model.keras")
    assert type(plain.optimizer) is type(make())
    for saved, loaded in zip(optimizer.variables, plain.optimizer.variables, strict=True):
        np.testing.assert_array_equal(saved.numpy(), loaded.numpy())
    again = hvs.load_model(tmp_path / "model.keras").optimizer
    with pytest.raises(ValueError, match="already wrapped"):
        hvs.DistributedOptimizer(again)


def test_a_model_trained_here_loads_without_this_package(tmp_path):
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    net.compile(hvs.DistributedOptimizer(keras.optimizers.SGD(0.01), compression=hvs.Compression.signum()), loss="mse")
    net.fit(np.ones((8, 3)), np.ones((8, 2)), verbose=0)
    net.save(tmp_path / "model.keras")
    program = f"""
import sys
sys.modules["horovod_sign"] = sys.modules["horovod"] = None
import keras
model = keras.saving.load_model({str(tmp_path / "model.keras")!r})
assert type(model.optimizer) is keras.optimizers.SGD and int(model.optimizer.iterations.numpy()) == 1
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.fault("has-state")
def test_state_is_kept_when_an_optimizer_is_wrapped():
    optimizer, x = hvs.Signum(1.0, 0.5), keras.Variable([0.0])
    apply(optimizer, x, [[4.0]])
    apply(hvs.DistributedOptimizer(optimizer), x, [[-1.0]])
    np.testing.assert_array_equal(x.numpy(), [-2.0])


def built(optimizer):
    optimizer.build([keras.Variable([1.0])])
    return optimizer


ERRORS = {
    "double momentum": (
        lambda: hvs.DistributedOptimizer(hvs.Signum(0.1), compression=hvs.Compression.signum()),
        "leave out",
    ),
    "clipping": (lambda: hvs.SignSGD(0.1, clipnorm=1.0), "clipnorm"),
    "momentum": (lambda: hvs.Signum(0.1, 1.0), "momentum must be"),
    "learning rate": (lambda: hvs.SignSGD(-1.0), "lr must be"),
    "horovod's compression": (
        lambda: hvs.DistributedOptimizer(hvs.SignSGD(0.1), compression=hvd.Compression.fp16),
        "no way not to vote",
    ),
    "horovod's argument": (lambda: hvs.DistributedOptimizer(hvs.SignSGD(0.1), op=hvd.Product), "has no op=Product"),
    "transport": (lambda: hvs.DistributedOptimizer(hvs.SignSGD(0.1), transport="pigeon"), "transport must be"),
    "passes": (lambda: hvs.DistributedOptimizer(hvs.SignSGD(0.1), backward_passes_per_step=0), "at least 1"),
    "elastic, not built": (
        lambda: hvs.elastic.KerasState(keras.Sequential([keras.layers.Dense(1)])),
        "no variables yet",
    ),
    "elastic, not compiled": (
        lambda: hvs.elastic.KerasState(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])),
        "call model.compile first",
    ),
    "weight decay": (lambda: hvs.SignSGD(0.1, weight_decay=-0.1), "weight_decay must be"),
    "two numbers of passes": (
        lambda: hvs.DistributedOptimizer(hvs.SignSGD(0.1, gradient_accumulation_steps=2), backward_passes_per_step=3),
        "give one of them",
    ),
    "passes, too late": (
        lambda: hvs.DistributedOptimizer(built(hvs.SignSGD(0.1)), backward_passes_per_step=2),
        "already has its variables",
    ),
    "process set": (
        lambda: hvs.DistributedOptimizer(hvs.SignSGD(0.1), process_set=hvd.ProcessSet([0])),
        "is not registered",
    ),
    "wrapped inside": (
        lambda: hvs.DistributedOptimizer(hvs.DistributedOptimizer(hvs.SignSGD(0.1))),
        "already wrapped",
    ),
    "not an optimizer": (lambda: hvs.DistributedOptimizer("adam"), "Keras 3 optimizer"),
    "integers": (
        lambda: hvs.DistributedOptimizer(hvs.SignSGD(0.1)).apply([tf.constant([1])], [keras.Variable([1.0])]),
        "int32",
    ),
}


@pytest.mark.fault("wrapped-twice")
@pytest.mark.fault("average")
@pytest.mark.fault("clipping")
@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_sentence(case):
    make, words = ERRORS[case]
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.fault("compiled")
def test_inside_xla_is_refused():
    optimizer, x = hvs.DistributedOptimizer(hvs.SignSGD(0.1)), keras.Variable([1.0])
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    net.compile(optimizer, loss="mse", jit_compile=True)
    with pytest.raises(ValueError, match="jit_compile=False"):
        net.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    assert x is not None


@pytest.mark.parametrize("missing", ["tensorflow", "horovod.tensorflow"])
def test_a_missing_framework_is_one_sentence(missing):
    program = f"""
import sys
sys.modules[{missing!r}] = None
import horovod_sign
try:
    import horovod_sign.tensorflow
except ImportError as error:
    assert "pip install" in str(error) and "\\n" not in str(error), error
else:
    raise SystemExit("imported")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


KERAS_ELSEWHERE = {
    "KERAS_BACKEND=jax": "set KERAS_BACKEND=tensorflow before Keras is imported",
    "KERAS_BACKEND=torch": "set KERAS_BACKEND=tensorflow before Keras is imported",
    "TF_USE_LEGACY_KERAS=1": "unset TF_USE_LEGACY_KERAS",
}


@pytest.mark.parametrize("variable", KERAS_ELSEWHERE)
def test_another_keras_is_no_reason_to_install_anything(variable):
    """What has to be changed is a variable of the environment, not TensorFlow, Horovod or Keras."""
    if "LEGACY" in variable and importlib.util.find_spec("tf_keras"):
        pytest.skip("tf_keras is installed")
    program = """
try:
    import horovod_sign.tensorflow.keras
except ImportError as error:
    print(error)
"""
    command = ["env", variable, sys.executable, "-c", program]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.strip()
    assert KERAS_ELSEWHERE[variable] in said and "install tensorflow" not in said and "\n" not in said


@pytest.mark.fault("not-initialised")
def test_horovod_not_initialized():
    program = """
import horovod_sign.tensorflow.keras as hvs

try:
    hvs.DistributedOptimizer(hvs.SignSGD(0.1))
except ValueError as error:
    assert "hvd.init()" in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
